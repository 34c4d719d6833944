"""Every network block against the published code's numbers, within the golden index's tolerances."""

import numpy as np
import pytest
import torch

from essl_fast.checkpoints.sspl import from_sspl_name, load_sspl_part
from essl_fast.models import PCM, SimSiamHead, VGG16Trunk, VGGish
from tests.golden.store import ONE_ULP, golden, recipe_state, rel_l2, x_max


def load(module, part, data, seed, gain, prefix=""):
    load_sspl_part(module, part, recipe_state(data, prefix, seed, gain))
    return module


def test_vgg16():
    data = golden("vgg16")
    trunk = load(VGG16Trunk(), "frame", data, data["cfg"][0], np.sqrt(2)).eval()
    with torch.no_grad():
        out = trunk(torch.from_numpy(data["image"]))
    assert x_max(out, data["out"]) < 2e-5


@pytest.mark.slow
def test_vggish():
    data = golden("vggish")
    net = load(VGGish(int(data["cfg"][0])), "sound", data, data["cfg"][1], np.sqrt(2)).eval()
    examples = torch.from_numpy(data["spect"]).transpose(0, 1)  # three examples of one clip
    with torch.no_grad():
        embedding, projection = net(examples)
        assert x_max(net.embed(examples)[0], data["emb128"]) < 1e-5
        assert x_max(net.fc(net.embed(examples)[0]), data["fc_out"]) < 1e-5
    assert x_max(embedding, data["audio_feat_orig"]) < 1e-5
    assert x_max(projection, data["audio_feat_trans"]) < 1e-5


def test_vggish_frozen_part_gets_no_gradient():
    net = VGGish(16)
    embedding, projection = net(torch.randn(2, 3, 96, 64))
    projection.sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == [
        "fc.0.weight",
        "fc.0.bias",
        "fc.2.weight",
        "fc.2.bias",
    ]
    assert not embedding.requires_grad


def pcm_inputs(cfg):
    _, audio_dim, out_dim, batch, _, seed = (int(n) for n in cfg)
    rng = np.random.default_rng(seed)
    view1 = rng.standard_normal((batch, 512, 14, 14), dtype=np.float32)
    audio = np.maximum(rng.standard_normal((batch, audio_dim), dtype=np.float32), 0)
    audio /= np.linalg.norm(audio, axis=1, keepdims=True)
    r = rng.standard_normal((batch, out_dim, 14, 14), dtype=np.float32)
    view2 = np.float32(0.7) * np.roll(view1[::-1], 3, axis=1) - np.float32(0.2)
    return view1, view2, audio, r


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pcm_c0", "pcm_c2", "pcm_c4"])
def test_pcm(case):
    data = golden(case)
    cycles, audio_dim, out_dim, _, wseed, _ = (int(n) for n in data["cfg"])
    view1, view2, audio, r = pcm_inputs(data["cfg"])
    np.testing.assert_array_max_ulp(view1, data["vis_view1"], maxulp=1)  # see recipe_state
    np.testing.assert_allclose(audio, data["audio"], atol=1e-7)
    np.testing.assert_allclose(view2.ravel()[:16], data["vis_view2_first16"], rtol=0, atol=4 * ONE_ULP)
    np.testing.assert_array_max_ulp(r.ravel()[:16], data["R_first16"], maxulp=1)
    audio = torch.from_numpy(data["audio"])

    pcm = load(PCM(cycles, audio_dim, out_dim), "pcm", data, wseed, 1.0)
    with torch.no_grad():
        assert x_max(pcm.eval()(torch.from_numpy(view1), audio), data["out_eval"]) < 1e-5

    pcm = load(PCM(cycles, audio_dim, out_dim), "pcm", data, wseed, 1.0).train()
    visual = torch.from_numpy(view1).requires_grad_()
    sound = audio.clone().requires_grad_()
    out = pcm(visual, sound)
    assert x_max(out.detach(), data["out_train_view1"]) < 5e-5
    (out * torch.from_numpy(r)).sum().backward()
    assert rel_l2(visual.grad, data["grad_vis"]) < 5e-4
    assert rel_l2(sound.grad, data["grad_audio"]) < 5e-4
    own = dict(pcm.named_parameters())
    assert [from_sspl_name("pcm", name) for name in data["param_grad_names"]] == list(own)  # the published order
    for name, norm in zip(data["param_grad_names"], data["grad_norm"], strict=True):
        grad = own[from_sspl_name("pcm", str(name))].grad
        assert (grad is None) == np.isnan(norm), name
        if grad is not None:
            assert abs(grad.double().norm().item() / norm - 1) < 1e-3, name
    assert rel_l2(pcm.gain[0].grad, data["grad_a0_0"]) < 5e-4
    if cycles:
        assert rel_l2(pcm.blend[2].grad, data["grad_b0_2"]) < 5e-4

    def buffers(kind):
        names = [from_sspl_name("pcm", f"{name}.{kind}") for name in data["bn_names"]]
        state = pcm.state_dict()
        return np.stack([state[name].numpy() for name in names])

    assert np.abs(buffers("running_mean") - data["run_mean_1"]).max() < 2e-5
    assert np.abs(buffers("running_var") - data["run_var_1"]).max() < 2e-5
    with torch.no_grad():
        assert x_max(pcm(torch.from_numpy(view2), audio), data["out_train_view2"]) < 5e-5
        assert np.abs(buffers("running_mean") - data["run_mean_2"]).max() < 2e-5
        assert np.abs(buffers("running_var") - data["run_var_2"]).max() < 2e-5
        np.testing.assert_array_equal(buffers("num_batches_tracked"), data["bn_num_batches_tracked_2"])
        if "out_eval_after" in data:
            assert x_max(pcm.eval()(torch.from_numpy(view1), audio), data["out_eval_after"]) < 1e-5


def test_simsiam_head_and_loss():
    from essl_fast.kernels import negative_cosine_similarity

    data = golden("simsiam")
    in_dim, wseed = int(data["cfg"][1]), data["cfg"][2]
    head = load(SimSiamHead(in_dim), "ssl_head", data, wseed, 1.0)
    x = torch.from_numpy(np.stack([data["x1"], data["x2"]])).requires_grad_()
    with torch.no_grad():
        p, z = head.eval()(x)
        for k in (0, 1):
            assert np.abs(p[k].numpy() - data[f"eval_p{k + 1}"]).max() < 3e-6
            assert np.abs(z[k].numpy() - data[f"eval_z{k + 1}"]).max() < 3e-6
        assert abs(negative_cosine_similarity(*p, *z).item() - data["eval_loss"]) < 1e-6
    p, z = head.train()(x)
    assert not z.requires_grad
    for k in (0, 1):
        assert np.abs(p[k].detach().numpy() - data[f"p{k + 1}"]).max() < 1e-4
        assert np.abs(z[k].numpy() - data[f"z{k + 1}"]).max() < 1e-4
    loss = negative_cosine_similarity(*p, *z)
    assert abs(loss.item() - data["loss"]) < 1e-6
    assert abs(loss.item() - data["loss_original_form"]) < 1e-6
    loss.backward()
    for k in (0, 1):
        assert rel_l2(x.grad[k], data[f"grad_x{k + 1}"]) < 1e-4
    own = dict(head.named_parameters())
    assert [from_sspl_name("ssl_head", name) for name in data["param_grad_names"]] == list(own)
    for name, norm in zip(data["param_grad_names"], data["grad_norm"], strict=True):
        assert abs(own[from_sspl_name("ssl_head", str(name))].grad.double().norm().item() / norm - 1) < 1e-4, name
    state = head.state_dict()
    for kind, stored in (("running_mean", "run_mean"), ("running_var", "run_var")):
        ours = np.concatenate([state[from_sspl_name("ssl_head", f"{name}.{kind}")] for name in data["bn_names"]])
        assert np.abs(ours - data[stored]).max() < 2e-5
