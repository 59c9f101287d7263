"""Memory of a worker: short garbage collections, because the loop waits for them, and no unused blocks.

Found by `scripts/hostile`: when the objects of new connections were 50,000, a turn of the loop took 30 ms. A worker of
230 MB had 72 MB in blocks of freed bodies.
"""

import ctypes
import subprocess
import sys

import pytest

COLLECTIONS = """
import gc
from tornado_gateway.process import worker

worker._tune_collector()
seen = []
gc.callbacks.append(lambda phase, info: phase == "start" and seen.append((info["generation"], gc.get_count()[0])))
kept = [[] for _ in range(300_000)]
print(max(generation for generation, _ in seen), max(count for _, count in seen))
"""
BODIES = """
import ctypes
from tornado_gateway.process import worker

class Figures(ctypes.Structure):
    _fields_ = [(f"figure{number}", ctypes.c_size_t) for number in range(10)]

worker._tune_allocator()
kept = []
for number in range(40):
    bodies = [bytes(1_000_000 + number), *(bytearray(2_000_000) for _ in range(20))]
    kept.append(bytes(2000))
    del bodies[::2]
    kept.append(bytes(3000))
library = ctypes.CDLL(None)
library.mallinfo2.restype = Figures
del bodies
print(library.mallinfo2().figure8)  # bytes in free blocks
"""
DOCUMENT = """
import asyncio, resource, sys
from pathlib import Path
from tornado_gateway.store.sqlite.state import SqliteState

async def grown(folder):
    state = SqliteState(Path(folder))
    await state.open()
    await state.save_document("settings", b"small")
    document = b'{"key": "value"}' * 1_500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await state.save_document("settings", document)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await state.close()
    return after - before

print(asyncio.run(grown(sys.argv[1])))
"""


def numbers_of(script, *arguments):
    output = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, timeout=60
    ).stdout
    return [int(word) for word in output.split()]


def test_a_collection_examines_few_objects():
    generation, objects = numbers_of(COLLECTIONS)
    assert generation == 0
    assert 500 < objects < 2000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_the_memory_of_bodies_is_returned():
    (unused,) = numbers_of(BODIES)
    assert unused < 4 << 20


def test_a_stored_document_is_not_copied(tmp_path):
    """SQLite copies parameters: for a document of 24 MB these were 48 MB, while two sets of settings are in memory."""
    (kilobytes,) = numbers_of(DOCUMENT, str(tmp_path))
    assert kilobytes < 12 << 10
