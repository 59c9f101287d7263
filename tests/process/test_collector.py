"""Garbage collections of a worker are short: the loop waits for them.

Found by `scripts/hostile`: when the objects of new connections were 50,000, a turn of the loop took 30 ms.
"""

import subprocess
import sys

SCRIPT = """
import gc
from tornado_gateway.process import worker

worker._tune_collector()
seen = []
gc.callbacks.append(lambda phase, info: phase == "start" and seen.append((info["generation"], gc.get_count()[0])))
kept = [[] for _ in range(300_000)]
print(max(generation for generation, _ in seen), max(count for _, count in seen))
"""


def test_a_collection_looks_at_few_objects():
    output = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, timeout=60).stdout
    generation, objects = map(int, output.split())
    assert generation == 0
    assert 1000 < objects < 10_000
