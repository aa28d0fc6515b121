"""Into how many blocks the hidden width of a feed-forward layer is cut."""

from typing import Final

L2_BYTES: Final = 1 << 20
"""Second-level cache of a core that blocks are made for: what current server cores have at least."""

LEAST_BLOCKS: Final = 8
"""So many blocks at least: the buffers of a block are then an eighth of the full width."""

LEAST_WIDTH: Final = 64
"""Width of a block from which on its products run at full speed."""


def mlp_blocks(hidden: int, read: int, element_bytes: int = 4, *, cache: int = L2_BYTES) -> int:
    """Return the number of blocks for a layer that is computed block by block.

    A block's weights fill at most half of the cache, beside the activations that stream past; a block is a multiple of
    64 wide, and no block is wider than an eighth of the hidden width where that leaves it 64 wide.

    Args:
        hidden: hidden width of the layer.
        read: numbers of weights that one hidden unit reads and writes: the rank (or width) of what comes in, for a
            gated layer of both, and of what goes out.
        element_bytes: size of a weight.
        cache: bytes of the cache.

    Returns:
        A count for which blocks of ceil(hidden / count), the last one with the rest, all hold something.

    Source: the rule of tiles in a core's cache (Dao 2023, arXiv:2307.08691, for attention), measured on layers of BERT.
    """
    fitting = min(cache // 2 // max(1, read * element_bytes), hidden // LEAST_BLOCKS)
    width = max(LEAST_WIDTH, fitting // LEAST_WIDTH * LEAST_WIDTH)
    return -(-hidden // width)
