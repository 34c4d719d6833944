"""The GPU's tests that `benchmarks.gpu_suite` runs first: about 40 that touch every op and path, in a minute.

None of them compiles a step with the predictive coding module, which takes Inductor a minute by itself.
"""

NATIVE = """
test_native.py::test_cuda_equals_host[(3, 246, 2, 2, 224)-torch.float32]
test_native.py::test_cuda_equals_host[(3, 246, 2, 2, 224)-torch.bfloat16]
test_native.py::test_cuda_default_type_side_stream_and_wild_indices
test_view_params.py::test_cuda_equals_host[246-224-2-torch.bfloat16]
test_view_params.py::test_cuda_equals_host[225-224-1-torch.float32]
test_log_mel.py::test_cuda_equals_host_and_reference[128-48000-True]
test_log_mel.py::test_cuda_published_features[sine_mix]
test_log_mel.py::test_cuda_nan_offset_side_stream_and_graph
test_localization_counts.py::test_cuda_equals_host[(600, 14, 14, 224, 1, 1)-torch.float32]
test_localization_counts.py::test_cuda_equals_host[(600, 14, 14, 224, 1, 1)-torch.bfloat16]
"""
TRITON = """
test_attention.py::test_outputs_and_gradients[cuda-(2, 24, 5, 7)-last-torch.float32]
test_attention.py::test_outputs_and_gradients[cuda-(2, 24, 5, 7)-last-torch.bfloat16]
test_attention.py::test_outputs_and_gradients[cuda-(2, 24, 5, 7)-first-torch.float32]
test_attention.py::test_training_shape[cuda-bf16-last]
test_attention.py::test_gradient_of_one_input[cuda-1-features]
test_attention.py::test_strides[cuda-last-channels-torch.bfloat16]
test_attention.py::test_constant_maps_are_exactly_zero[cuda-last-1]
test_attention.py::test_a_tie_sends_the_gradient_to_the_first_position[cuda-maximum-1]
test_attention.py::test_a_nan_is_not_hidden_and_stays_in_its_sample[cuda-1]
test_attention.py::test_autocast_changes_nothing[cuda]
test_attention.py::test_compiles_without_a_graph_break[cuda-False]
test_attention.py::test_real_sizes[(256, 512, 14, 14)-last-torch.bfloat16]
test_cosine.py::test_loss_and_gradients[cuda-1-1-torch.bfloat16-torch.bfloat16]
test_cosine.py::test_wide_rows[cuda-2-2048-torch.bfloat16]
test_cosine.py::test_strided_inputs[cuda]
test_cosine.py::test_many_rows_give_the_same_bits_twice[cuda]
test_cosine.py::test_float16_gradients_survive_until_the_loss_scale[cuda]
test_cosine.py::test_compiles_without_a_graph_break[cuda-False]
test_cosine.py::test_real_sizes_on_a_gpu[torch.bfloat16-256]
test_pixel_bce.py::test_loss_and_gradient[cuda-3-3-24-1]
test_pixel_bce.py::test_half_precision_maps[cuda-torch.bfloat16]
test_pixel_bce.py::test_the_size_of_training[cuda]
test_pixel_bce.py::test_boxes_of_any_kind[cuda]
test_pixel_bce.py::test_two_runs_give_the_same_bits[cuda]
test_pixel_bce.py::test_compiles_without_a_graph_break[cuda-False]
test_pixel_bce.py::test_real_sizes_on_a_gpu[256-14-224-1]
"""
PATHS = (
    "tests/models/test_inference_form.py::test_cudnns_fused_convolution[torch.bfloat16]",
    "tests/models/test_inference_form.py::test_cudnns_fused_convolution[torch.float32]",
    "tests/models/test_audio_input.py::test_an_embedding_on_a_gpu_knows_no_neighbours",
)
LOADED = (  # with DALI and PyAV
    "tests/data/loading/test_decoder.py::test_gpu_decodes_as_the_cpu",
    "tests/data/loading/test_loader.py::test_gpu_gives_the_cpus_batches",
    "tests/data/loading/test_pool.py::test_gpu_pool_gives_the_streamed_batches[1]",
    "tests/train/test_graphs.py::test_a_cuda_graph_trains_as_plain_steps_do[always-off]",
)
SMOKE = (*(f"tests/kernels/{test}" for test in (NATIVE + TRITON).split("\n") if test), *PATHS)
