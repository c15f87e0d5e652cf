"""The spool: publications that NATS could not take, on disk until it can. Files only; nothing here talks to NATS.

<root>/<host>-<pid>-<random>/   one folder an owner
    lock                        flock, held by whoever owns or has adopted the folder
    owner.json, adopted         who made it; that somebody else has it now
    writing/ ready/ draining/   the states of a segment, each a folder: it moves by a rename
    giving_up/                  the oldest segment of a full spool, while its loss is being told
    bad/                        bytes of segments that are no records, set aside for a person
"""

from market_pipeline.bus.spool.folder import SpoolFolder, spool_root
from market_pipeline.bus.spool.record import SpoolRecord
from market_pipeline.bus.spool.spool import Spool
from market_pipeline.bus.spool.status import FolderStatus, spool_status

__all__ = ["FolderStatus", "Spool", "SpoolFolder", "SpoolRecord", "spool_root", "spool_status"]
