"""What is fuzzed: every target, by its name. `target.Target` says what a target is."""

from __future__ import annotations

from essl_fast.common.errors import InputError
from essl_fast.data import media
from tests.fuzz.target import Target
from tests.fuzz.target_annotations import lists, notes, read_list, read_notes
from tests.fuzz.target_commands import command_lines, read_command
from tests.fuzz.target_folders import folder, open_folder, shard, verified, verify_folder, walk_shard
from tests.fuzz.target_media import (
    arrays,
    for_dali,
    jpegs,
    make_clips,
    read_array,
    read_by_dali,
    read_clip,
    read_jpeg,
    read_still,
    read_video,
    still_pictures,
    videos,
)
from tests.fuzz.target_moments import FIGURES, read_figures, read_moments
from tests.fuzz.target_settings import (
    configs,
    read_checkpoint,
    read_config,
    read_settings,
    some_checkpoints,
    some_settings,
)

TARGETS = {
    target.name: target
    for target in (
        Target("annotations", notes, read_notes),
        Target("lists", lists, read_list),
        Target("folder", folder, open_folder),
        Target("shard", shard, walk_shard),
        Target("verify", verified, verify_folder, native=True),
        Target("moments", videos, read_moments, allowed=(media.MediaError,), native=True, slow=True),
        Target("figures", lambda place: FIGURES, read_figures),
        Target("config", configs, read_config, slow=True),
        Target("commands", command_lines, read_command),
        Target("settings", some_settings, read_settings),
        Target("checkpoint", some_checkpoints, read_checkpoint),
        Target("jpeg", jpegs, read_jpeg, allowed=(), native=True),
        Target("still", still_pictures, read_still, allowed=(media.MediaError,), native=True),
        Target("hdf5", arrays, read_array, allowed=(InputError, media.MediaError), native=True, slow=True),
        Target("clip", make_clips, read_clip, allowed=(), native=True),
        Target("video", videos, read_video, allowed=(), native=True, slow=True),
        Target("dali", for_dali, read_by_dali, allowed=(), native=True, slow=True),
    )
}
