"""The ops of the training step, behind one name each: a fused kernel where one runs, plain PyTorch elsewhere."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.kernels import attention as attention
    from essl_fast.kernels import attention_backward as attention_backward
    from essl_fast.kernels import cosine as cosine
    from essl_fast.kernels import fp8 as fp8
    from essl_fast.kernels import native as native
    from essl_fast.kernels import pixel_bce_kernels as pixel_bce_kernels
    from essl_fast.kernels import reference as reference
    from essl_fast.kernels import tuning as tuning
    from essl_fast.kernels.convolution import batches as batches
    from essl_fast.kernels.convolution import conv_relu as conv_relu
    from essl_fast.kernels.convolution import conv_relu_fuses as conv_relu_fuses
    from essl_fast.kernels.convolution import conv_relu_pool as conv_relu_pool
    from essl_fast.kernels.convolution import for_images as for_images
    from essl_fast.kernels.ops import audio_guided_attention as audio_guided_attention
    from essl_fast.kernels.ops import blend_norm_gelu as blend_norm_gelu
    from essl_fast.kernels.ops import blend_norm_gelu_at_rest as blend_norm_gelu_at_rest
    from essl_fast.kernels.ops import centre_view as centre_view
    from essl_fast.kernels.ops import localization_counts as localization_counts
    from essl_fast.kernels.ops import log_mel as log_mel
    from essl_fast.kernels.ops import negative_cosine_similarity as negative_cosine_similarity
    from essl_fast.kernels.ops import pixel_bce as pixel_bce
    from essl_fast.kernels.ops import random_views as random_views
    from essl_fast.kernels.ops import rests as rests
    from essl_fast.kernels.ops import runs_chain as runs_chain
    from essl_fast.kernels.ops import softmax_attention as softmax_attention
    from essl_fast.kernels.ops import two_views as two_views
    from essl_fast.kernels.ops import view_boxes as view_boxes
    from essl_fast.kernels.ops import view_params as view_params
    from essl_fast.kernels.pooling import halved as halved
    from essl_fast.kernels.reference import Attention as Attention
    from essl_fast.kernels.reference import box_weights as box_weights
    from essl_fast.kernels.upsampling import doubled_convolution as doubled_convolution
    from essl_fast.kernels.upsampling import doubling_taps as doubling_taps

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Attention": "reference",
        "attention": "",
        "attention_backward": "",
        "audio_guided_attention": "ops",
        "batches": "convolution",
        "blend_norm_gelu": "ops",
        "blend_norm_gelu_at_rest": "ops",
        "box_weights": "reference",
        "centre_view": "ops",
        "conv_relu": "convolution",
        "conv_relu_fuses": "convolution",
        "conv_relu_pool": "convolution",
        "cosine": "",
        "doubled_convolution": "upsampling",
        "doubling_taps": "upsampling",
        "for_images": "convolution",
        "fp8": "",
        "halved": "pooling",
        "localization_counts": "ops",
        "log_mel": "ops",
        "native": "",
        "negative_cosine_similarity": "ops",
        "pixel_bce": "ops",
        "pixel_bce_kernels": "",
        "random_views": "ops",
        "reference": "",
        "rests": "ops",
        "runs_chain": "ops",
        "softmax_attention": "ops",
        "tuning": "",
        "two_views": "ops",
        "view_boxes": "ops",
        "view_params": "ops",
    },
)
