"""Writes the guide of a table into the file in which the table lies, through a map: no row comes into memory."""

import mmap
import os

import numpy as np

from strongroom.engine.index_search import directory_of, fill_bloom
from strongroom.engine.index_table import bloom_words, directory_bits


def write_guide(file: int, rows_at: int, chunks: int, directory_at: int, bloom_at: int) -> None:
    """The columns lie at `rows_at`; the room for directory and filter is zeros that the disk has. Raises OSError."""
    whole = mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    first = np.frombuffer(whole, "<u8", chunks, rows_at)
    second = np.frombuffer(whole, "<u8", chunks, rows_at + 8 * chunks)
    at = directory_at
    for piece in directory_of(first, directory_bits(chunks)):
        os.pwrite(file, piece.tobytes(), at)
        at += piece.nbytes
    fill_bloom(np.frombuffer(whole, "<u8", bloom_words(chunks), bloom_at), first, second)
