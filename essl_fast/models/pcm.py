"""SSPL's predictive coding module (PCM): the visual map and the audio embedding correct each other over a few cycles.

Song et al., CVPR 2022. There are three representations r, of 3x3, 7x7 and 14x14. Each layer predicts the one below
(top-down; the lowest one predicts the audio embedding), and the error of that prediction corrects the layer
(bottom-up):

    top-down    r_l <- gelu(BN((1 - b_l) r_l + b_l * predict(r_{l+1})))
    bottom-up   r_l <- gelu(BN(r_l + a_l * correct(r_{l-1} - prediction of r_{l-1})))

with rates a, b per channel, each the relu of a parameter. As in the published code, the top layer is mixed with the
visual map without batch norm, predictions within the cycles have neither batch norm nor GELU, and every cycle has its
own batch norms.

Under autocast, representations, predictions and errors are kept in autocast's 16-bit dtype. The rates and batch norms
are float32, and so is the arithmetic between two stored maps: each is rounded when it is stored.
"""

import contextlib
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from essl_fast import kernels
from essl_fast.models.norm import Moments, ViewBatchNorm, untracked, update_running

LEVELS = 3


def _stored(x: Tensor) -> Tensor:
    """x in the dtype in which maps are kept: autocast's, or its own."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _Map(NamedTuple):
    """A representation for its two readers; on the fused path its chain adds their gradients.

    The first one of a corrected representation but the highest reads its error: what the level above is corrected by.
    """

    one: Tensor
    other: Tensor


class _Pass(NamedTuple):
    """What is the same for all chains of a forward pass."""

    views: int
    later: list[Moments] | None  # see ViewBatchNorm
    fused: bool  # chains run as kernels
    at_rest: bool  # in the form for evaluation, if so
    corrections: list[Tensor]  # weights


class PCM(nn.Module):
    """Visual map (V * B, width, 14, 14) and audio embedding (V * B, audio_dim) -> (V * B, out_dim, 14, 14).

    ``views`` of :meth:`forward` is V: the batch norms take their statistics of each view by itself.

    Args:
        cycles: may be 0: then only the initial top-down and bottom-up pass runs, and the blend rates get no gradient.
        audio_dim: of the audio embedding.
        out_dim: channels of the result.
        width: channels of every representation, VGG-16's 512 in the recipe.
        checkpoint: the cycles keep only their inputs for the backward pass, and are computed again there. That takes
            about 1/5 of the memory and 4/5 of a forward pass more.
    """

    taps: Tensor  # a buffer

    def __init__(
        self, cycles: int = 4, audio_dim: int = 128, out_dim: int = 512, width: int = 512, checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.cycles, self.width, self.checkpoint = cycles, width, checkpoint
        self.predict = nn.ModuleList(
            [
                nn.Conv2d(width, audio_dim, 1),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
            ]
        )
        self.correct = nn.ModuleList(
            [
                nn.ConvTranspose2d(audio_dim, width, 1, bias=False),
                nn.ConvTranspose2d(width, width, 3, stride=2, bias=False),  # 3x3 -> 7x7
                nn.ConvTranspose2d(width, width, 3, padding=1, bias=False),  # after 7x7 -> 14x14
            ]
        )
        self.correct.append(nn.ConvTranspose2d(width, out_dim, 1))  # the output layer
        self.register_buffer("taps", kernels.doubling_taps(7, 7), persistent=False)
        self.blend = nn.ParameterList([torch.full((1, width, 1, 1), 0.5) for _ in range(LEVELS)])
        self.gain = nn.ParameterList([torch.ones(1, width, 1, 1) for _ in range(LEVELS)])
        self.predict_norm = nn.ModuleList([ViewBatchNorm(width) for _ in range(LEVELS - 1)])
        self.correct_norm = nn.ModuleList([ViewBatchNorm(width) for _ in range(LEVELS)])
        self.cycle_predict_norm = nn.ModuleList([ViewBatchNorm(width) for _ in range(cycles * (LEVELS - 1))])
        self.cycle_correct_norm = nn.ModuleList([ViewBatchNorm(width) for _ in range(cycles * LEVELS)])

    def rates(self) -> list[nn.Parameter]:
        """The step sizes a and b, which the recipe does not decay: blend, then gain."""
        return [*self.blend, *self.gain]

    def _apply(self, fn: Any, recurse: bool = True) -> "PCM":
        """As every module's, but rates (1, C, 1, 1) keep plain strides, as their gradients have.

        channels_last gives them others: those of axes of one element, of which DDP warns, and copies the gradient.
        """
        super()._apply(fn, recurse)
        for rate in self.rates():
            rate.data = rate.data.as_strided(rate.shape, (rate.shape[1], 1, 1, 1))
        return self

    def _predict_below(self, level: int, r: Tensor) -> Tensor:
        """Level 1 or 2's prediction of the representation under it; 7 -> 3 drops a row and a column."""
        return kernels.halved(self.predict[level](r))

    def _chain(
        self,
        norm: ViewBatchNorm,
        now: _Pass,
        x: Tensor,
        y: Tensor | None = None,
        *,
        blend: Tensor | None = None,
        gain: Tensor | None = None,
        top: Tensor | None = None,
        less: Tensor | None = None,
        twice: bool = True,
    ) -> _Map:
        """gelu(norm(u)), with u = x, its mix with y by a blend rate, or x + gain y; then mixed with ``top`` if given.

        On the fused path y carries its gain already (see :meth:`_corrections`). The first reader gets the result less
        ``less``, if given; without ``twice`` it is the only one.
        """
        if now.fused:
            rates = None if blend is None else blend.flatten(), None if top is None else self.blend[2].flatten()
            if now.at_rest:
                tables = norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
                return _Map(*kernels.blend_norm_gelu_at_rest(x, y, rates[0], *tables, top, rates[1], less, twice))
            y, less = (None if each is None else each.to(x.dtype).expand_as(x) for each in (y, less))
            first, second, moments = kernels.blend_norm_gelu(
                x, y, rates[0], norm.weight, norm.bias, now.views, norm.eps, top, rates[1], less, twice
            )
            norm.note(moments, x.numel() // (x.shape[1] * now.views), now.later)
            return _Map(first, second)
        if y is not None and blend is not None:
            mix = F.relu(blend)
            x = _stored((1 - mix) * x + mix * y)
        elif y is not None and gain is not None:
            x = _stored(x + F.relu(gain) * y)
        out = _stored(F.gelu(norm(x, now.views, now.later)))
        if top is not None:
            mix = F.relu(self.blend[2])
            out = _stored(F.gelu((1 - mix) * out + mix * top))
        return _Map(out if less is None else out - less, out)

    def _corrections(self, fused: bool) -> list[Tensor]:
        """The weights of the three corrections; on the fused path times their gains.

        A gain is a number for each output channel: applied to the weight it costs nothing, applied to a map a read and,
        in the backward pass, a read and a write.
        """
        weights = [cast(Tensor, self.correct[level].weight) for level in range(LEVELS)]
        if not fused:
            return weights
        scaled = [w * F.relu(g) for w, g in zip(weights, self.gain, strict=True)]
        return scaled if self.training else [_stored(w) for w in scaled]  # once, not in every cycle

    def _audio_error(self, r: Tensor, audio: Tensor, weight: Tensor) -> Tensor:
        """The correction of the lowest representation: the error of its prediction of the audio embedding."""
        predicted = F.gelu(self.predict[0](r)).mean(dim=(2, 3))
        # The error is the same at all 3x3 positions, and a 1x1 convolution of a constant is a constant.
        return F.conv_transpose2d((audio - predicted)[:, :, None, None], weight)

    def _bottom_up(
        self, r: list[_Map], predicted: list[Tensor], audio: Tensor, norms, now: _Pass, top: Tensor | None
    ) -> list[_Map]:
        """Correct each level by the error of the one below it; level 0 by the audio's.

        With ``top``, the visual map, the highest level comes mixed with it, as the next cycle begins. Without it there
        is no next cycle, which would be the second reader of each level.
        """
        out: list[_Map] = []
        for level, weight in enumerate(now.corrections):
            if level == 0:
                step = self._audio_error(r[0].one, audio, weight)
            elif level == 1:
                step = F.conv_transpose2d(out[0].one, weight, stride=2)
            else:
                step = kernels.doubled_convolution(out[1].one, weight, self.taps)
            highest = level == LEVELS - 1
            mix, less = (top, None) if highest else (None, predicted[level])
            more = {"gain": self.gain[level], "top": mix, "less": less, "twice": top is not None}
            out.append(self._chain(norms[level], now, r[level].other, step, **more))
        return out

    def forward(self, visual: Tensor, audio: Tensor, views: int = 1) -> Tensor:
        if visual.shape[1:] != (self.width, 14, 14):
            raise ValueError(f"PCM: the visual map must be (V * B, {self.width}, 14, 14), got {tuple(visual.shape)}")
        # predicted[l]: the prediction of level l by level l + 1; the visual map itself is above the top level.
        visual = _stored(visual)
        if self.training:
            fused = not self.correct_norm[0].synced and kernels.runs_chain(visual)
        else:
            fused = kernels.rests(visual)
        later: list[Moments] = []
        now = _Pass(views, later, fused, not self.training, self._corrections(fused))
        r = [_Map(visual, visual)]
        for level in (2, 1):
            below = self._predict_below(level, r[0].one)
            norm = cast(ViewBatchNorm, self.predict_norm[level - 1])
            r.insert(0, self._chain(norm, now, below))
        top = visual if self.cycles else None
        r = self._bottom_up(r, [each.one for each in r], audio, self.correct_norm, now, top)

        again = self.checkpoint and torch.is_grad_enabled()
        for cycle in range(self.cycles):
            work = self._checkpointed if again else self._cycle
            flat = work(cycle, visual, audio, now, *(x for each in r for x in each))
            r = [_Map(*flat[at : at + 2]) for at in range(0, 2 * LEVELS, 2)]
        update_running(later)
        return self.correct[3](r[2].one)

    def _cycle(self, cycle: int, visual: Tensor, audio: Tensor, now: _Pass, *r: Tensor) -> list[Tensor]:
        """The representations, lowest first and each for two readers, after one more pass down and up.

        The highest one is mixed with the visual map before a cycle, and after the last one it is not.
        """
        levels = [_Map(*r[at : at + 2]) for at in range(0, 2 * LEVELS, 2)]
        predicted = [visual] * (LEVELS - 1)
        for level in (1, 0):
            predicted[level] = self._predict_below(level + 1, levels[level + 1].one)
            norm = cast(ViewBatchNorm, self.cycle_predict_norm[cycle * (LEVELS - 1) + level])
            levels[level] = self._chain(norm, now, levels[level].other, predicted[level], blend=self.blend[level])
        norms = self.cycle_correct_norm[cycle * LEVELS : (cycle + 1) * LEVELS]
        top = visual if cycle + 1 < self.cycles else None
        return [x for each in self._bottom_up(levels, predicted, audio, norms, now, top) for x in each]

    def _checkpointed(self, cycle: int, visual: Tensor, audio: Tensor, now: _Pass, *r: Tensor) -> list[Tensor]:
        """:meth:`_cycle`, keeping only its inputs: the backward pass computes it again.

        Running statistics are updated once. Under the compiler that needs no care: their update is not recomputed.
        """
        contexts: dict[str, Any] = (
            {} if torch.compiler.is_compiling() else {"context_fn": lambda: (contextlib.nullcontext(), untracked(self))}
        )
        # Each norm updates its own statistics: a list of moments would outlive what computed them.
        now = now._replace(later=None)
        return run_checkpointed(
            self._cycle, cycle, visual, audio, now, *r, use_reentrant=False, preserve_rng_state=False, **contexts
        )
