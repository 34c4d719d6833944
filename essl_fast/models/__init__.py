"""Networks: visual trunks, audio networks, the predictive coding module, heads, and the localizer of them all."""

from essl_fast.models.heads import LSSHead, SimSiamHead
from essl_fast.models.localizer import Forward, Localizer, build
from essl_fast.models.norm import synchronize
from essl_fast.models.pcm import PCM
from essl_fast.models.trunks import SmallTrunk, VGG16Trunk
from essl_fast.models.vggish import SmallAudioNet, VGGish
from essl_fast.models.weights import WeightsError, load_pretrained

__all__ = [
    "PCM",
    "Forward",
    "LSSHead",
    "Localizer",
    "SimSiamHead",
    "SmallAudioNet",
    "SmallTrunk",
    "VGG16Trunk",
    "VGGish",
    "WeightsError",
    "build",
    "load_pretrained",
    "synchronize",
]
