"""The peers' side of ``peers.py``: diffusers and MONAI, without dipy_ldm.

It runs in a new process for each network. Networks are trained as in the peers' own
examples: a shuffling loader, noise and times by the scheduler of the library, mean
squared error, Adam (for a U-Net AdamW, with clipped gradients, cosine decay of the
learning rate and EMA of the weights).
"""

import time
import warnings

import numpy as np
from peers_common import (
    CODE_DIM,
    DDIM_STEPS,
    GROUPS,
    HEAD,
    N_CODES,
    SAMPLED_STEPS,
    SIDE,
    WARM_UP,
    answer,
    cores,
    draw_images,
    memory_since,
    peak_gib,
    speed_of_product,
    time_calls,
)
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

warnings.filterwarnings("ignore")
torch.set_num_threads(cores())


def measure_autoencoder(network, library, batch_size, steps, precision):
    """Train MONAI's VQVAE, and decode."""
    from monai.networks.nets import VQVAE

    images = draw_images((steps + WARM_UP) * batch_size, network.space, 1)
    images = channels_first(images)
    start, begin = peak_gib(), time.perf_counter()
    model = VQVAE(
        spatial_dims=len(network.space),
        in_channels=network.channels,
        out_channels=network.channels,
        channels=network.widths,
        num_res_layers=1,
        num_res_channels=network.widths,
        downsample_parameters=((2, 4, 1, 1),) * len(network.widths),
        upsample_parameters=((2, 4, 1, 1, 0),) * len(network.widths),
        num_embeddings=N_CODES,
        embedding_dim=CODE_DIM,
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    def loss_of(batch):
        reconstructed, loss = model(batch)
        return mse_loss(reconstructed.float(), batch) + loss

    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision):
            loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    figures = train(step, images, batch_size, begin)
    figures |= memory_since(start)
    with torch.no_grad(), autocast(precision):
        model.eval()
        latents = model.encode(images[:batch_size])
        decode = time_calls(lambda: model.decode_stage_2_outputs(latents), 5)
    model.train()
    flop = count_flop(lambda: loss_of(images[:1]).backward())
    # The codebook is not a parameter, but a moving average.
    weights = count_weights(model) + N_CODES * CODE_DIM
    gflop = round(batch_size * flop / 1e9, 3)
    return figures | {"decode": decode, "gflop": gflop, "weights": weights}


def measure_unet(network, library, batch_size, steps, precision):
    """Train a U-Net of diffusers or MONAI, and generate by DDIM."""
    n = steps + WARM_UP
    latents = channels_first(draw_images(n * batch_size, network.space, 3))
    start, begin = peak_gib(), time.perf_counter()
    model, predict_noise, sample = SIDES[library](network)
    step = make_step(model, predict_noise, n, precision)
    figures = train(step, latents, batch_size, begin)
    figures |= memory_since(start)
    with torch.no_grad(), autocast(precision):
        model.eval()
        noise = torch.randn_like(latents[:batch_size])
        sample(noise, 1)
        begin = time.perf_counter()
        sample(noise, SAMPLED_STEPS)
        seconds = (time.perf_counter() - begin) / SAMPLED_STEPS
    model.train()
    one, times = latents[:1], torch.zeros(1, dtype=torch.long)
    flop = count_flop(lambda: predict_noise(one, one, times).sum().backward())
    return figures | {
        "sample_step": seconds,
        "samples_a_second": batch_size / (DDIM_STEPS * seconds),
        "gflop": round(batch_size * flop / 1e9, 3),
        "weights": count_weights(model),
    }


def make_step(model, predict_noise, n, precision):
    """Return a function that trains a U-Net on batches ``(n, channels, *space)``."""
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    decay = get_cosine_schedule_with_warmup(optimizer, n // 10, n)
    average = EMAModel(model.parameters(), decay=0.999)

    def step(batch):
        noise = torch.randn_like(batch)
        times = torch.randint(0, 1000, (len(batch),))
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision):
            loss = mse_loss(predict_noise(batch, noise, times).float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        average.step(model.parameters())
        return loss.item()

    return step


def build_diffusers(network):
    """Build the U-Net of diffusers.

    Shapes: predict_noise ``(batch,)``.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    levels = len(network.widths)
    model = UNet2DModel(
        sample_size=network.space,
        in_channels=network.channels,
        out_channels=network.channels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        block_out_channels=network.widths,
        layers_per_block=1,
        attention_head_dim=HEAD,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,
        time_embedding_dim=128,
        resnet_time_scale_shift="scale_shift",
    )
    mixer, sampler = DDPMScheduler(), DDIMScheduler()

    def predict_noise(latents, noise, times):
        return model(mixer.add_noise(latents, noise, times), times).sample

    def sample(x, steps):
        sampler.set_timesteps(steps)
        for time_ in sampler.timesteps:
            x = sampler.step(model(x, time_).sample, time_, x).prev_sample
        return x

    return model, predict_noise, sample


def build_monai(network):
    """Build the U-Net of MONAI."""
    from monai.inferers import DiffusionInferer
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    model = DiffusionModelUNet(
        spatial_dims=len(network.space),
        in_channels=network.channels,
        out_channels=network.channels,
        channels=network.widths,
        num_res_blocks=1,
        attention_levels=(False,) * len(network.widths),
        num_head_channels=HEAD,
        norm_num_groups=GROUPS,
    )
    mixer, sampler = DiffusionInferer(DDPMScheduler(1000)), DDIMScheduler(1000)

    def predict_noise(latents, noise, times):
        return mixer(latents, model, noise, times)

    def sample(x, steps):
        sampler.set_timesteps(steps)
        return DiffusionInferer(sampler).sample(x, model, sampler, verbose=False)

    return model, predict_noise, sample


SIDES = {"diffusers": build_diffusers, "monai": build_monai}


def train(step, examples, batch_size, begin):
    """Train for an epoch, and time its steps.

    Shapes: examples ``(n, channels, *space)``.
    """
    loader = DataLoader(TensorDataset(examples), batch_size, shuffle=True)
    ends, used = [begin], [time.process_time()]
    for (batch,) in loader:
        step(batch)
        ends.append(time.perf_counter())
        used.append(time.process_time())
    seconds = np.diff(ends)
    busy = (used[-1] - used[WARM_UP]) / seconds[WARM_UP:].sum() / cores()
    steps = seconds[WARM_UP:].tolist()
    return {"first_step": seconds[0], "step": steps, "busy": busy}


def autocast(precision):
    """Compute in a precision; weights stay float32."""
    enabled = precision == "bfloat16"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def channels_first(array):
    """Move ``(n, *space, channels)`` to ``(n, channels, *space)``."""
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def count_weights(model):
    """Count the trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flop(function):
    """Count the floating point operations of a call by torch.

    It counts convolutions and matrix products. A multiply-add counts as two.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def measure_machine(network, library, precision, **options):
    """Return the speed of matrix products, and versions."""
    import diffusers
    import monai

    a = torch.randn(SIDE, SIDE).to(getattr(torch, precision))
    modules = {"torch": torch, "diffusers": diffusers, "monai": monai}
    return {
        "gflop_a_second": speed_of_product(lambda: a @ a),
        "versions": {name: module.__version__ for name, module in modules.items()},
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    answer(autoencoder=measure_autoencoder, unet=measure_unet, machine=measure_machine)
