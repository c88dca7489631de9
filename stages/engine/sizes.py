"""Sizes that the compiled loops share with the arrays made for them."""

import numpy as np

NO_KEY = 2**63 - 1  # in a list of nearest rows: none yet. Keys are squared distance · M + row, and smaller
CACHE_LINE = 64  # bytes
INT32_BYTE_TERMS = 16_384  # products or squared differences of bytes, below 2**17 each, whose sum fits an int32
SCAN_RUN = 64  # references of a block of products that are compared with the list of the nearest at once

# a tile of coarse scores
LANES, GROUP = 32, 4  # scores in a vector; references that share a maximum
TILE = LANES * GROUP  # references
TILE_QUERIES = 3
SCORE_BITS = 16  # a score is kept as an int16: the upper half of its sum, rounded down
FILLER_SUM = np.int32(-(2**31) + 1)  # of the places that fill the last tile up
