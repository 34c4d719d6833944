"""Prepared data on disk: tar files and their indexes, the manifest, and how they are read."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.data.shards import manifest as manifest
    from essl_fast.data.shards import tars as tars
    from essl_fast.data.shards.columns import split_column as split_column
    from essl_fast.data.shards.manifest import BAD as BAD
    from essl_fast.data.shards.manifest import BLACK as BLACK
    from essl_fast.data.shards.manifest import CLIP_CHECK as CLIP_CHECK
    from essl_fast.data.shards.manifest import CLIP_CHECKS as CLIP_CHECKS
    from essl_fast.data.shards.manifest import CORRUPT as CORRUPT
    from essl_fast.data.shards.manifest import FORMAT as FORMAT
    from essl_fast.data.shards.manifest import NO_AUDIO as NO_AUDIO
    from essl_fast.data.shards.manifest import QUARANTINE as QUARANTINE
    from essl_fast.data.shards.manifest import REASONS as REASONS
    from essl_fast.data.shards.manifest import SILENT as SILENT
    from essl_fast.data.shards.manifest import TRUNCATED as TRUNCATED
    from essl_fast.data.shards.manifest import VERSION as VERSION
    from essl_fast.data.shards.manifest import Manifest as Manifest
    from essl_fast.data.shards.reading import ALTERED as ALTERED
    from essl_fast.data.shards.reading import Picture as Picture
    from essl_fast.data.shards.reading import Quarantined as Quarantined
    from essl_fast.data.shards.reading import Shards as Shards
    from essl_fast.data.shards.tars import CLIP as CLIP
    from essl_fast.data.shards.tars import EXTENSIONS as EXTENSIONS
    from essl_fast.data.shards.tars import INDEX_VERSION as INDEX_VERSION
    from essl_fast.data.shards.tars import JPEG as JPEG
    from essl_fast.data.shards.tars import LARGEST_FRAME as LARGEST_FRAME
    from essl_fast.data.shards.tars import PCM_BYTES as PCM_BYTES
    from essl_fast.data.shards.tars import PNG as PNG
    from essl_fast.data.shards.tars import SAMPLES as SAMPLES
    from essl_fast.data.shards.tars import SOUNDS as SOUNDS
    from essl_fast.data.shards.tars import SPLITS as SPLITS
    from essl_fast.data.shards.tars import ShardIndex as ShardIndex
    from essl_fast.data.shards.tars import ShardWriter as ShardWriter
    from essl_fast.data.shards.tars import decode_key as decode_key
    from essl_fast.data.shards.tars import encode_key as encode_key
    from essl_fast.data.shards.tars import iterate as iterate
    from essl_fast.data.shards.tars import json_bytes as json_bytes
    from essl_fast.data.shards.tars import pair_crc as pair_crc
    from essl_fast.data.shards.tars import read_index as read_index
    from essl_fast.data.shards.writing import write_manifest as write_manifest

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ALTERED": "reading",
        "BAD": "manifest",
        "BLACK": "manifest",
        "CLIP": "tars",
        "CLIP_CHECK": "manifest",
        "CLIP_CHECKS": "manifest",
        "CORRUPT": "manifest",
        "EXTENSIONS": "tars",
        "FORMAT": "manifest",
        "INDEX_VERSION": "tars",
        "JPEG": "tars",
        "LARGEST_FRAME": "tars",
        "Manifest": "manifest",
        "NO_AUDIO": "manifest",
        "PCM_BYTES": "tars",
        "PNG": "tars",
        "Picture": "reading",
        "QUARANTINE": "manifest",
        "Quarantined": "reading",
        "REASONS": "manifest",
        "SAMPLES": "tars",
        "SILENT": "manifest",
        "SOUNDS": "tars",
        "SPLITS": "tars",
        "Shards": "reading",
        "ShardIndex": "tars",
        "ShardWriter": "tars",
        "TRUNCATED": "manifest",
        "VERSION": "manifest",
        "decode_key": "tars",
        "encode_key": "tars",
        "iterate": "tars",
        "json_bytes": "tars",
        "manifest": "",
        "pair_crc": "tars",
        "read_index": "tars",
        "split_column": "columns",
        "tars": "",
        "write_manifest": "writing",
    },
)
