"""Networks and objectives: trunks, audio networks, the PCM, heads, and the localizer that joins them."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.models import audio_input as audio_input
    from essl_fast.models import norm as norm
    from essl_fast.models import objectives as objectives
    from essl_fast.models import registry as registry
    from essl_fast.models import weights as weights
    from essl_fast.models.heads import LSSHead as LSSHead
    from essl_fast.models.heads import SimSiamHead as SimSiamHead
    from essl_fast.models.localizer import Forward as Forward
    from essl_fast.models.localizer import Localizer as Localizer
    from essl_fast.models.localizer import build as build
    from essl_fast.models.norm import synchronize as synchronize
    from essl_fast.models.pcm import PCM as PCM
    from essl_fast.models.registry import audio_facts as audio_facts
    from essl_fast.models.registry import check as check
    from essl_fast.models.registry import keeps_embeddings as keeps_embeddings
    from essl_fast.models.registry import made_parts as made_parts
    from essl_fast.models.registry import register_audio as register_audio
    from essl_fast.models.registry import register_head as register_head
    from essl_fast.models.registry import register_objective as register_objective
    from essl_fast.models.registry import register_trunk as register_trunk
    from essl_fast.models.registry import trunk_facts as trunk_facts
    from essl_fast.models.registry import unpublished_parts as unpublished_parts
    from essl_fast.models.trunks import SmallTrunk as SmallTrunk
    from essl_fast.models.trunks import VGG16Trunk as VGG16Trunk
    from essl_fast.models.vggish import SmallAudioNet as SmallAudioNet
    from essl_fast.models.vggish import VGGish as VGGish
    from essl_fast.models.weights import WeightsError as WeightsError
    from essl_fast.models.weights import load_made as load_made
    from essl_fast.models.weights import load_pretrained as load_pretrained

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Forward": "localizer",
        "LSSHead": "heads",
        "Localizer": "localizer",
        "PCM": "pcm",
        "SimSiamHead": "heads",
        "SmallAudioNet": "vggish",
        "SmallTrunk": "trunks",
        "VGG16Trunk": "trunks",
        "VGGish": "vggish",
        "WeightsError": "weights",
        "audio_facts": "registry",
        "audio_input": "",
        "build": "localizer",
        "check": "registry",
        "keeps_embeddings": "registry",
        "load_pretrained": "weights",
        "made_parts": "registry",
        "norm": "",
        "load_made": "weights",
        "objectives": "",
        "register_audio": "registry",
        "register_head": "registry",
        "register_objective": "registry",
        "register_trunk": "registry",
        "registry": "",
        "synchronize": "norm",
        "trunk_facts": "registry",
        "unpublished_parts": "registry",
        "weights": "",
    },
)
