"""The command line.

Only this room knows argparse commands and their output. Used by `__main__`.
"""
