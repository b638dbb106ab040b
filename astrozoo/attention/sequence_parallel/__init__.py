"""Attention over a sequence spread over processes, exact in value and gradient.

ring       the attention itself
blocks     attention of some queries to some keys, and how parts are merged
layout     which tokens lie on which rank, and which parts have to meet
plan       what the ranks agree on before they start
shards     cutting a sequence and putting it together
transport  messages between neighbours
"""

from astrozoo.attention.sequence_parallel.layout import shard_positions
from astrozoo.attention.sequence_parallel.ring import ring_attend
from astrozoo.attention.sequence_parallel.shards import gather_sequence, shard_sequence
from astrozoo.attention.sequence_parallel.transport import RingRecord, record_ring

__all__ = ["RingRecord", "gather_sequence", "record_ring", "ring_attend", "shard_positions", "shard_sequence"]
