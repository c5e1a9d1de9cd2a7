"""Every setting of padpolicy: default, unit and why it is there. YAML files in `configs/` hold only differences.

`load(verb, overrides)` composes YAML and command line (hydra), converts once to the dataclasses below and checks the
rules that span fields. Past that line nobody sees omegaconf. Importing this module imports neither torch nor hydra.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from padpolicy.shipped import shipped

MISSING: Any = "???"  # omegaconf's own marker: reading it raises and names the field


API_KEY_VARIABLE = "PADPOLICY_API_KEY"  # a key on the command line shows in the list of processes


class ConfigError(ValueError):
    """A setting that cannot be used. The command line prints it without a traceback and exits with code 2."""


@dataclass
class DataConfig:
    """What is learned from: demonstrations, videos, and what is cut out of them."""

    path: str = ""  # zarr store of robot demonstrations, a folder or a URL (s3://…), "shipped:sample/NAME" for ours
    more: list[str] = field(default_factory=list)  # other stores of demonstrations; PATH@3: its windows thrice as often
    videos: list[str] = field(default_factory=list)  # action-free: stores, or folders of video files; PATH@3 as above
    video_ratio: float = 0.3  # share of samples from `videos` when both are given (PAD: 0.3)
    video_camera: str = "front"  # the camera name that frames of video folders take
    video_speed: float = 1.0  # >1: the video shows things faster than the robot does them
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])  # observed rgb
    depth_cameras: list[str] = field(default_factory=lambda: ["front"])  # observed depth
    future_cameras: list[str] = field(default_factory=lambda: ["front"])  # imagined rgb
    future_depth_cameras: list[str] = field(default_factory=lambda: ["front"])  # imagined depth
    image_size: int = 96  # pixels; frames of another size are letterboxed
    dt_s: float = 0.1  # seconds between action steps
    obs_steps: int = 1  # frames of history, dt_s apart, the last one is "now"
    chunk_steps: int = 16  # actions per predicted chunk: chunk_steps * dt_s seconds
    future_offsets_s: list[float] = field(default_factory=lambda: [1.6])  # when the imagined frames are, from "now"
    val_fraction: float = 0.02  # share of episodes held out for the validation loss
    workers: int = 1  # loader processes; 0 loads in the training process
    cache_mb: int = 512  # decoded frames kept of each store, MiB, by all loader processes of a rank together
    cache_latents: bool = True  # encode each frame once and keep the latents beside the pixels


@dataclass
class EncodersConfig:
    """The frozen encoders of pictures and words."""

    image: str = (
        "shipped:vae"  # AutoencoderKL: "shipped:NAME", a folder, or a hub name such as stabilityai/sd-vae-ft-mse
    )
    text: str = "shipped:text"  # open_clip: "shipped:NAME", "local-dir:PATH", or "MODEL" or "MODEL/PRETRAINED"
    text_tokens: int = 24  # tokens of an instruction that the policy sees; longer ones are cut with a warning


@dataclass
class ModelConfig:
    """The network."""

    family: str = "padpolicy"  # ours, or another that stands beside it: see padpolicy/model/families.py
    width: int = 192  # numbers per token
    depth: int = 6  # blocks
    heads: int = 6  # of attention; width / heads numbers each
    mlp_ratio: float = 4.0  # hidden numbers of a block's MLP per number of width
    patch: int = 2  # latent pixels per token side
    eyes: str = (
        "latents"  # how the observation's rgb is seen: "latents" (frozen VAE), "stem" or "resnet" (both are trained)
    )
    resnet_stages: int = 4  # of a ResNet-18: 1 to 4; fewer make smaller eyes of finer maps
    text: str = "both"  # "tokens": in the context; "pooled": one vector in every modulation, as PAD; or "both"
    coarse_cameras: list[str] = field(default_factory=list)  # stem: a quarter of the tokens for these, e.g. the wrist
    stem_depth: bool = False  # the stem sees depth pixel by pixel, too; otherwise depth has coarse tokens of its own
    glance: bool = False  # one look for where the instruction points; only where scripts/train_eye.py has taught it
    prefix_sum: bool = False  # actions are told what a known prefix adds up to; for policies that command deltas
    depth_size: int = 24  # depth images are reduced (nearest valid) to this many pixels a side
    depth_patch: int = 6  # reduced depth pixels per token side
    recompute: bool = False  # recompute activations in the backward pass: less memory, a third more time
    conditioning: str = "adaln_zero"  # pad: how time and text come in: "in_context", "cross_attention", "adaln" or this
    one_pose_token: bool = True  # pad: all actions and the present pose as one token; otherwise a token for each action


@dataclass
class DiffusionConfig:
    """Noise, modes and losses in training, and steps and guidance in sampling."""

    objective: str = "flow"  # "flow" (straight paths) or "ddpm"; what can be chosen, and when: docs/noise.md
    predict_action: str = "velocity"  # what the network says of it: "velocity" (ddpm: v), "clean", or ddpm's "noise"
    predict_future: str = "clean"  # the same of what it imagines
    loss: str = "auto"  # "simple" or, ddpm only, "bound" or "hybrid"; "auto": hybrid where a variance is learned
    learn_variance: bool = False  # ddpm only: learned range variance
    train_steps: int = 1000  # ddpm only: K; step k is tau = (k + 1) / K
    schedule: str = "linear"  # ddpm only: "linear", "cosine" or "shifted" (the cosine for another resolution)
    schedule_shift: float = 1.0  # shifted: side that the cosine suits / side of what is denoised; <1 is noisier
    coupling: str = "blind"  # in joint: "blind" (action never sees future), "pad" (action sees future), "full"
    times: str = "future_noisier"  # in joint: "shared", "independent" or "future_noisier" (future >= action)
    future: str = "change"  # what is denoised of future frames: "change" since now (still pixels are 0), or "frame"
    tau_law: str = "logit_normal"  # "uniform", "logit_normal", "beta" (more weight near noise) or "importance"
    # importance: how often each of so many equal parts of tau in [0, 1] is drawn, in any unit; the loss is divided by
    # it. Shares of the measured loss look natural and starve large tau: there the loss is small, and matters.
    tau_density: list[float] = field(default_factory=list)
    modes: dict[str, float] = field(  # share of a robot sample's draws; a mode not named keeps its own, 0 leaves it out
        default_factory=lambda: {"policy": 0.2, "joint": 0.5, "forward": 0.15, "inverse": 0.15}
    )
    video_modes: dict[str, float] = field(default_factory=lambda: {"video": 1.0})  # the same for action-free samples
    action_draws: int = 4  # noise draws per sample in mode `policy`: the context is paid for once
    prefix_share: float = 0.0  # share of samples with a clean action prefix (training-time real-time chunking)
    prefix_max_steps: int = 8  # of the chunk
    prefix_noise: float = 0.0  # how far prefixes stray, as a share of the actions' range; the rest of the chunk returns
    text_dropout: float = 0.1  # share of samples that see the null text
    obs_dropout: float = 0.0  # share of samples that lose one observation field (never the last one)
    weight_action: float = 1.0  # loss weights
    weight_rgb: float = 1.0
    weight_depth: float = 0.3
    sampler: str = "auto"  # flow: "euler" or "heun"; ddpm: "ddim", "ancestral" or "dpmsolver++"; "auto": the first
    steps: int = 4  # sampling steps
    clip_action: float = 0.0  # ddpm: while sampling, what is said to be clean of actions stays within +- this; 0: free
    guidance: float = 1.0  # scale over text; 1 is none
    guidance_future: float = 0.0  # of what is imagined; 0: as guidance
    guidance_channels: int = 0  # leading channels of imagined latents that are guided (DiT: 3); 0: all


@dataclass
class EnvConfig:
    """An environment to collect in or to evaluate in. `env=NAME` takes it from configs/env/."""

    id: str = ""  # gymnasium id
    tasks: list[str] = field(default_factory=list)  # empty: all that are not held out
    robot: str = ""  # key of the normaliser
    renderer: str = "rays"
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])
    max_steps: int = 0  # 0: the environment's own limit
    options: dict[str, Any] = field(default_factory=dict)  # other arguments of its constructor: {image_size: 128}


@dataclass
class TrainingConfig:
    """The optimiser and the loop."""

    steps: int = 20_000  # optimiser steps
    max_seconds: float = 0  # stop (and save) after this much time, whatever `steps` says; 0: no limit
    init: str = ""  # policy, or file of released weights (.pt), to start from where they fit; a resumed run ignores it
    batch_size: int = 64  # global: over all processes and accumulation steps
    accumulate: int = 1  # parts that a process splits its share of the batch into, to save memory
    lr: float = 5e-4  # at its peak, after the warm-up
    weight_decay: float = 0.01  # of matrices only
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])  # AdamW's
    warmup_steps: int = 500  # linear
    final_lr_fraction: float = 0.02  # cosine down to this share of lr
    clip_norm: float = 1.0  # longer gradients are shortened to this
    precision: str = "bf16"  # "bf16" (autocast) or "fp32"
    ema: float = 0.999  # decay of the averaged weights, which are the ones that act; 0 switches it off
    threads: int = 0  # torch threads; 0 leaves torch's choice
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    log_every: int = 50  # steps; 0: never
    checkpoint_every: int = 1000  # steps; the last step is always saved
    validate_every: int = 1000  # steps; 0: never
    imagine_every: int = 2000  # imagined futures as images in the log; 0: never
    evaluate_every: int = 0  # closed-loop evaluation while training; 0: never
    keep_checkpoints: int = 2  # the newest ones


@dataclass
class AugmentConfig:
    """Pictures changed at random while training, alike over time, cameras, rgb and depth. Needs cache_latents=false."""

    shift_px: int = 0  # up to this many pixels, each way
    crop: float = 0.0  # up to this share of the side is cut away, and the rest enlarged
    brightness: float = 0.0  # each up to this share, up or down
    contrast: float = 0.0
    saturation: float = 0.0


@dataclass
class EvaluationConfig:
    """Closed-loop evaluation while training."""

    episodes_per_task: int = 10
    num_envs: int = 8  # environments that are planned for in one batch
    env_workers: int = 2  # processes that step environments
    exec_steps: int = 2  # steps executed of each chunk before planning again; fewer: surer grasps, more planning
    execution: str = "chunk"  # "waypoint": the environment's script drives to the pose exec_steps ahead, as PAD does
    seed: int = 100_000  # evaluation scenes: scene i of every task has seed + i
    sampler: str = ""  # see diffusion.sampler; "": the policy's own
    steps: int = 0  # sampling steps; 0: the policy's own
    guidance: float = 0.0  # 0: the policy's own
    temperature: float = 1.0  # of the noise that plans start from; 0: none
    paraphrase: str = "canonical"  # "canonical", "random" or "held_out"
    videos: int = 12  # rollouts shown on the page
    imagine: bool = True  # draw what the policy imagined beside what happened


@dataclass
class TrainConfig:
    """`padpolicy train`."""

    out: str = MISSING  # run directory; the same command again resumes
    name: str = "default"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class EvalConfig:
    """`padpolicy eval`. The evaluation's settings stand at the top level: `episodes_per_task=10`."""

    checkpoint: str = MISSING  # run directory, checkpoint directory, or the name of a shipped policy ("tabletop")
    out: str = MISSING  # folder for results.json, videos/ and index.html
    tasks: list[str] = field(default_factory=list)  # empty: all that are not held out
    env: EnvConfig = field(default_factory=EnvConfig)
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", ...
    threads: int = 0  # torch threads; 0 leaves torch's choice
    floor: str = ""  # "": the policy; "no_image", "no_text" or "replay": what a policy without eyes, ears or brain gets
    episodes_per_task: int = 10
    num_envs: int = 8  # environments that are planned for in one batch
    env_workers: int = 2  # processes that step environments
    exec_steps: int = 2  # steps executed of each chunk before planning again; fewer: surer grasps, more planning
    execution: str = "chunk"  # "waypoint": the environment's script drives to the pose exec_steps ahead, as PAD does
    seed: int = 100_000  # scene i of every task has seed + i
    sampler: str = ""  # see diffusion.sampler; "": the policy's own
    steps: int = 0  # sampling steps; 0: the policy's own
    guidance: float = 0.0  # scale over text; 0: the policy's own
    temperature: float = 1.0  # of the noise that plans start from; 0: none
    paraphrase: str = "canonical"  # "canonical", "random" or "held_out"
    videos: int = 12  # rollouts shown on the page
    imagine: bool = True  # draw what the policy imagined beside what happened
    other_instruction: bool = False  # also run each scene under another of its instructions
    demonstrations: str = ""  # store whose actions floor=replay plays; "shipped:sample/NAME" for ours
    imagination: str = ""  # store of held-out episodes on which imagined futures are measured
    imagination_samples: int = 256  # moments of it that are looked at


@dataclass
class CollectConfig:
    """`padpolicy collect`."""

    out: str = MISSING  # the store; the same command again goes on where it stopped
    env: EnvConfig = field(default_factory=EnvConfig)
    tasks: list[str] = field(default_factory=list)  # empty: all that are not held out
    episodes_per_task: int = 10
    seed: int = 0  # episode j of task i has a seed that is a function of (seed, i, j)
    workers: int = 2  # processes that record
    noise: float = 0.5  # share of episodes with disturbed execution and clean expert labels
    keep_failures: bool = False  # also write failed attempts, to a store beside it: useful as action-free video
    depth: bool = True  # record depth too
    actions: bool = True  # False writes an action-free store


@dataclass
class EncodeConfig:
    """`padpolicy encode`."""

    path: str = MISSING  # the store; its latents are kept in it
    encoder: str = "shipped:vae"  # as encoders.image of training: AutoencoderKL by name, folder or "shipped:NAME"
    cameras: list[str] = field(default_factory=list)  # empty: all
    image_size: int = 96  # as data.image_size of training: frames of another size are letterboxed first
    workers: int = 2  # processes that encode, on a CPU; a GPU does it in one
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", ...


@dataclass
class LabelConfig:
    """`padpolicy label`."""

    path: str = MISSING  # frames without actions: a store, or a folder of video files
    checkpoint: str = MISSING  # policy that learned mode `inverse`: run directory, or the name of a shipped one
    out: str = MISSING  # the store; the same command again goes on where it stopped
    speed: float = 1.0  # >1: the recording shows things faster than the robot does them
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", ...


@dataclass
class LimitsConfig:
    """Of every number of a waypoint, or of every joint: in its own unit (m, rad, share of the opening) and seconds."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    velocity: list[float] = field(default_factory=list)  # unit/s, either way
    acceleration: list[float] = field(default_factory=list)  # unit/s^2
    jerk: list[float] = field(default_factory=list)  # unit/s^3


@dataclass
class SafetyConfig:
    """What never happens on a robot. Enforced on the robot's side of the process boundary; always on."""

    waypoint: LimitsConfig = field(default_factory=LimitsConfig)  # of the setpoint: workspace and speeds
    joint: LimitsConfig = field(default_factory=LimitsConfig)  # of the joints behind it, where the arm solves for them
    lead: list[float] = field(
        default_factory=list
    )  # how far the setpoint may run ahead of the measured pose, per number
    max_jump: list[float] = field(
        default_factory=list
    )  # of a plan's next waypoint from the present setpoint, per number
    max_observation_age_s: float = 0.8  # of what a plan was made from, when the plan arrives; older plans are refused
    max_plan_age_s: float = 1.5  # of what a plan was made from, while it is followed; then the robot holds
    silence_s: float = 0.1  # nothing heard from the controller for so long: hold
    watchdog_s: float = 1.0  # held for so long during an episode: stop, for good


@dataclass
class RobotConfig:
    """A robot. `robot=NAME` takes it from configs/robot/."""

    kind: str = ""  # "tabletop" (simulated, in real time), "lerobot" (any arm that LeRobot drives), "arm" (see Arm)
    name: str = ""  # key of the policy's normaliser; "" takes the policy's own
    make: str = ""  # "package.module:function" that returns LeRobot's Robot, or the Arm, in the robot's process
    options: dict[str, Any] = field(default_factory=dict)  # given to `make`, or to the simulated arm
    cameras: dict[str, str] = field(default_factory=dict)  # lerobot: its name of a picture -> ours, where they differ
    grippers: list[str] = field(default_factory=list)  # lerobot: which numbers are openings; []: as their names say
    proprio: list[str] = field(default_factory=list)  # lerobot: what the policy feels, in order; []: every number
    servo_hz: float = 100.0  # setpoints a second
    camera_hz: float = 10.0  # observations a second
    camera_latency_s: float = 0.0  # simulated: from exposure to arrival
    camera_jitter_s: float = 0.0  # simulated: up to so much more, at random
    camera_drop: float = 0.0  # simulated: share of pictures that never arrive
    http_port: int = 0  # the robot's own page for stopping it, on localhost: POST /stop, GET /status; 0: any free one
    log: str = ""  # file for every plan received and every setpoint sent (JSON lines); "": none
    safety: SafetyConfig = field(default_factory=SafetyConfig)


@dataclass
class ControllerConfig:
    """How plans are asked for and joined."""

    # "naive": the newest plan wins; "rtc": joined to a known prefix, for policies trained with diffusion.prefix_share;
    # "ensemble": plans are averaged; "sync": stands still while it thinks
    execution: str = "naive"
    exec_steps: int = 2  # steps of a plan before the next is asked for, at the least
    loop_hz: float = 50.0  # how often the controller looks for something new; also its heartbeat
    latency_quantile: float = 0.9  # of the latest planning times: how long the next is expected to take
    latency_window: int = 20  # planning times that are remembered
    ensemble_decay: float = 0.01  # weight exp(-decay * i) of the i-th oldest plan (ACT: 0.01)
    steps: int = 0  # sampling steps; 0: the policy's own
    guidance: float = 0.0  # scale over text; 0: the policy's own
    temperature: float = 0.0  # of the noise that plans start from; 0: plans of like pictures are alike, and join better
    seed: int = 0  # of the plans' noise


@dataclass
class MonitorConfig:
    """What compares what happens with what was imagined. All but the last two belong to the thresholds' calibration."""

    every_s: float = 0.2  # an observation is remembered so often, to be compared with its future
    steps: int = 1  # sampling steps of what is imagined; one gives the mean, which errs least
    floor: float = 0.3  # squared error of a cell that needs no excuse, latents of unit variance
    cells: int = 4  # the most surprising ones, averaged
    tracking_s: float = 0.3  # for so long the arm must be off its commanded pose
    shares: dict[str, float] = field(  # of undisturbed episodes with a false alarm, by channel; together 5 %
        default_factory=lambda: {"imagined": 0.03, "picture": 0.01, "tracking": 0.01}
    )
    on_alarm: str = "replan"  # "replan" (hold, look again, plan anew), "slow" or "stop" (and ask)
    thresholds: str = ""  # file; "": monitor.json beside the policy


@dataclass
class DeployConfig:
    """`padpolicy deploy`."""

    out: str = MISSING  # folder for the recording, the robot's log and results.json
    checkpoint: str = ""  # policy that thinks here: run directory, or the name of a shipped one
    server: str = ""  # or ws://HOST:PORT, wss://…: one that `padpolicy serve` offers; then no torch is needed here
    api_key: str = ""  # of the server; or the environment variable PADPOLICY_API_KEY
    ca_file: str = ""  # certificate to trust, of a server with its own
    instruction: str = ""  # what to do; "": the words of the simulated task
    task: str = ""  # simulated: which task; "": one by the seed
    seed: int = 0  # of the simulated scene and of the plans' noise; episode i has seed + i
    episodes: int = 1
    seconds: float = 20.0  # an episode's, at the most; a simulated one ends when it has succeeded
    page: bool = True  # a live page in the browser
    page_port: int = 8080  # on localhost; 0: any free one
    imagine_s: float = 1.0  # how often the page shows an imagined future, which costs a slower plan; 0: never
    dry_run: bool = False  # plan and show, but send the robot nothing
    watch: bool = False  # compare what happens with what was imagined, in a process of its own; `monitor` says how
    brain: str = "auto"  # where the policy thinks: "thread", "process", or "auto": a thread for CUDA, else a process
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", ...
    threads: int = 1  # torch threads of the brain; 0 leaves torch's choice
    compile: bool = False  # the network, for its shapes: faster plans, the first takes minutes; needs a C++ compiler
    robot: RobotConfig = field(default_factory=RobotConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


@dataclass
class ServeConfig:
    """`padpolicy serve`."""

    checkpoint: str = MISSING  # run directory, checkpoint directory, or the name of a shipped policy ("tabletop")
    host: str = "127.0.0.1"  # address to listen on; one that others can reach needs api_key, or insecure=true
    port: int = 8000  # 0: any free one, which is printed
    api_key: str = ""  # what clients must show; "": that of the environment variable PADPOLICY_API_KEY, if it is set
    insecure: bool = False  # let everybody who can reach `host` use the policy, without a key
    certfile: str = ""  # TLS: certificate chain, PEM; "": none
    keyfile: str = ""  # its private key, PEM
    max_connections: int = 64  # further clients are told to come back later (HTTP 503)
    max_message_mb: int = 16  # MiB; a larger request ends its connection (1009)
    max_steps: int = 100  # sampling steps that a request may ask for
    seed: int = 0  # of the plans' noise, where a request has none
    handshake_s: float = 10.0  # a connection that has not become a websocket by then is closed
    ping_s: float = 20.0  # how often clients are asked whether they live, and how long they may take to say so
    idle_s: float = 600.0  # a connection without a request for so long is closed
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", ...
    threads: int = 0  # torch threads; 0 leaves torch's choice
    compile: bool = False  # the network, for its shapes: faster plans, the first takes minutes; needs a C++ compiler


@dataclass
class ReplayConfig:
    """`padpolicy replay`."""

    path: str = MISSING  # a store with actions, such as the recording.zarr of a deployment
    out: str = MISSING  # as of deploy
    episode: int = 0
    page: bool = True  # a live page in the browser
    page_port: int = 8080  # on localhost; 0: any free one
    dry_run: bool = False  # show, but send the robot nothing
    robot: RobotConfig = field(default_factory=RobotConfig)


@dataclass
class QuickstartConfig:
    """`padpolicy quickstart`."""

    out: str = "quickstart"
    seed: int = 100_000
    tasks: list[str] = field(default_factory=list)  # of the shipped policy; empty: all that are not held out
    episodes_per_task: int = 1  # of the shipped policy
    threads: int = 0  # torch threads; 0 leaves torch's choice
    train_seconds: int = 270  # how long the small policy trains
    train_steps: int = 0  # >0: instead of train_seconds


@dataclass
class BenchConfig:
    """`padpolicy bench`, `padpolicy bench latency`, `padpolicy bench family`."""

    # "ratios": pairs side by side; "latency": plans stage by stage, beside PAD's settings; "family": all of them
    what: str = "ratios"
    out: str = ""  # JSON file for the results; "": only print them. family: a folder; the same command again goes on
    checkpoint: str = ""  # policy whose acting is timed; "": the shipped one of the recipe, else an untrained one
    recipe: str = "tabletop"  # of configs/experiment: whose network is trained, beside a bare one of the same size
    repeats: int = 5  # of each measurement; medians are reported
    batch_size: int = 0  # of the training step; 0: the recipe's
    env_steps: int = 30  # environment steps per repeat
    plans: int = 100  # latency: plans timed of each of the settings
    steps: list[int] = field(
        default_factory=lambda: [1, 2, 4]
    )  # latency: numbers of sampling steps; 0: the policy's own
    pad_steps: int = 50  # latency: sampling steps of PAD's settings; 0 leaves them out
    compile: bool = False  # latency: compile the context and the denoising step (CUDA graphs on a GPU)
    trunk: str = ""  # latency: an untrained DiT of this size instead of a policy: "S", "B", "L" or "XL"
    image_size: int = 256  # latency: pixels of the trunk's pictures
    seed: int = 0  # latency: of the noise
    threads: int = 1  # torch threads; 0 leaves torch's choice
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", ...


SCHEMAS = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "collect": CollectConfig,
    "encode": EncodeConfig,
    "label": LabelConfig,
    "deploy": DeployConfig,
    "replay": ReplayConfig,
    "serve": ServeConfig,
    "quickstart": QuickstartConfig,
    "bench": BenchConfig,
}

FAMILIES = {  # family -> the modes that its network has; {}: all
    "padpolicy": (),
    "pad": ("joint", "video"),
    "unet": ("policy",),
    "transformer": ("policy",),
}

SAMPLERS = {"flow": ("euler", "heun"), "ddpm": ("ddim", "ancestral", "dpmsolver++")}  # the first is "auto"
_SAMPLERS = ("auto", *SAMPLERS["flow"], *SAMPLERS["ddpm"])

_CHOICES = {
    "model.family": tuple(FAMILIES),
    "model.eyes": ("latents", "stem", "resnet"),
    "model.resnet_stages": (1, 2, 3, 4),
    "model.text": ("tokens", "pooled", "both"),
    "model.conditioning": ("in_context", "cross_attention", "adaln", "adaln_zero"),
    "diffusion.objective": ("flow", "ddpm"),
    "diffusion.coupling": ("blind", "pad", "full"),
    "diffusion.future": ("change", "frame"),
    "diffusion.times": ("shared", "independent", "future_noisier"),
    "diffusion.tau_law": ("uniform", "logit_normal", "beta", "importance"),
    "diffusion.predict_action": ("clean", "velocity", "noise"),
    "diffusion.predict_future": ("clean", "velocity", "noise"),
    "diffusion.loss": ("auto", "simple", "bound", "hybrid"),
    "diffusion.schedule": ("linear", "cosine", "shifted"),
    "diffusion.sampler": _SAMPLERS,
    "evaluation.sampler": ("", *_SAMPLERS),
    "sampler": ("", *_SAMPLERS),
    "training.precision": ("bf16", "fp32"),
    "evaluation.paraphrase": ("canonical", "random", "held_out"),
    "paraphrase": ("canonical", "random", "held_out"),
    "floor": ("", "no_image", "no_text", "replay"),
    "what": ("ratios", "latency", "family"),
    "trunk": ("", "S", "B", "L", "XL"),
    "execution": ("chunk", "waypoint"),
    "evaluation.execution": ("chunk", "waypoint"),
    "controller.execution": ("rtc", "naive", "ensemble", "sync"),
    "brain": ("auto", "thread", "process"),
    "monitor.on_alarm": ("replan", "slow", "stop"),
}

_AT_LEAST = {
    "controller.exec_steps": 1,
    "controller.latency_window": 1,
    "episodes": 1,
    "data.obs_steps": 1,
    "data.chunk_steps": 1,
    "data.workers": 0,
    "image_size": 1,
    "diffusion.action_draws": 1,
    "diffusion.steps": 1,
    "diffusion.clip_action": 0,
    "diffusion.guidance_channels": 0,
    "augment.shift_px": 0,
    "training.steps": 1,
    "training.max_seconds": 0,
    "training.batch_size": 1,
    "training.accumulate": 1,
    "training.log_every": 0,
    "training.checkpoint_every": 0,
    "training.validate_every": 0,
    "training.imagine_every": 0,
    "training.evaluate_every": 0,
    "training.keep_checkpoints": 1,
    "training.threads": 0,
    "evaluation.episodes_per_task": 1,
    "evaluation.exec_steps": 1,
    "evaluation.num_envs": 1,
    "evaluation.steps": 0,
    "episodes_per_task": 1,
    "exec_steps": 1,
    "num_envs": 1,
    "steps": 0,
    "workers": 1,
    "port": 0,
    "max_connections": 1,
    "max_message_mb": 1,
    "max_steps": 1,
    "repeats": 1,
    "batch_size": 0,
    "env_steps": 1,
    "plans": 1,
    "pad_steps": 0,
    "threads": 0,
    "train_seconds": 0,
    "train_steps": 0,
}

_BENCH_READS = {  # what each of the three looks at, besides `out` and `threads`
    "ratios": ("device", "checkpoint", "recipe", "repeats", "batch_size", "env_steps"),
    "latency": (
        "device",
        "checkpoint",
        "recipe",
        "plans",
        "steps",
        "pad_steps",
        "compile",
        "trunk",
        "image_size",
        "seed",
    ),
    "family": (),
}

# Settings that older policies and runs lack: their default is what was done before.
CAME_LATER = (
    "prefix_noise",
    "prefix_sum",
    "stem_depth",
    "family",
    "conditioning",
    "one_pose_token",
    "resnet_stages",
    "loss",
    "schedule",
    "schedule_shift",
    "tau_density",
    "sampler",
    "clip_action",
    "guidance_future",
    "guidance_channels",
)

_MAY_CHANGE = (  # in a run that goes on: how long it lasts, what is watched of it, what changes rounding alone
    "out",
    "name",
    "env",
    "evaluation",
    "data.workers",
    "data.cache_mb",
    "model.recompute",
    "diffusion.sampler",
    "diffusion.steps",
    "diffusion.clip_action",
    "diffusion.guidance",
    "diffusion.guidance_future",
    "diffusion.guidance_channels",
    "training.steps",
    "training.max_seconds",
    "training.init",
    "training.accumulate",
    "training.threads",
    "training.device",
    "training.log_every",
    "training.checkpoint_every",
    "training.validate_every",
    "training.imagine_every",
    "training.evaluate_every",
    "training.keep_checkpoints",
)

_SHARES = (
    "robot.camera_drop",
    "controller.latency_quantile",
    "data.video_ratio",
    "data.val_fraction",
    "diffusion.text_dropout",
    "diffusion.obs_dropout",
    "augment.crop",
    "augment.brightness",
    "augment.contrast",
    "augment.saturation",
    "noise",
)


def load(verb: str, overrides: Sequence[str] = ()) -> Any:
    """Composes `configs/<verb>.yaml` with command-line overrides (`group=name`, `key=value`) into its dataclass.

    Raises:  ConfigError with the nearest valid name for a misspelt key, group or choice, and for a missing value.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    _one_family(verb, overrides)
    try:
        with initialize_config_dir(str(shipped("configs")), version_base="1.3"):
            tree = compose(verb, overrides=list(overrides))
        cfg = OmegaConf.to_object(tree)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).split(":")[-1].strip()
        raise ConfigError(f"padpolicy {verb} needs {key}=…, and it was not given.") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(verb, overrides, error)) from None
    if isinstance(cfg, TrainConfig):
        cfg.data.path = _shipped_data(cfg.data.path)
        cfg.data.more = [_shipped_data(path) for path in cfg.data.more]
        cfg.data.videos = [_shipped_data(path) for path in cfg.data.videos]
    if isinstance(cfg, EvalConfig):
        cfg.demonstrations, cfg.imagination = _shipped_data(cfg.demonstrations), _shipped_data(cfg.imagination)
    check(cfg)
    return cfg


def _one_family(verb: str, overrides: Sequence[str]) -> None:
    """Raises ConfigError for a family beside an experiment that is one: neither would be whole."""
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    file = shipped("configs") / "experiment" / f"{chosen.get('experiment')}.yaml"
    if "family" in chosen and file.is_file() and "/family/" in file.read_text():
        raise ConfigError(
            f"padpolicy {verb}: experiment={chosen['experiment']} is a family already; give it without "
            f"family={chosen['family']}, or that one with another experiment."
        )


def _shipped_data(path: str) -> str:
    """`shipped:sample/x` -> where data/sample/x is on this machine; other paths stay, and so does a weight behind @."""
    if not path.startswith("shipped:"):
        return path
    name, weight = split_weight(path.removeprefix("shipped:"))
    return str(shipped(f"data/{name}")) + (f"@{weight:g}" if weight != 1 else "")


def dump(cfg: Any) -> str:
    """A configuration as YAML, every setting written out."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as plain dicts and lists, ready for JSON."""
    return dataclasses.asdict(cfg)


def split_weight(path: str) -> tuple[str, float]:
    """`PATH@3` -> PATH, 3; a path that exists as it is, or that has no number behind an @, has the weight 1."""
    before, at, weight = path.rpartition("@")
    try:
        return (path, 1.0) if not at or Path(path).exists() else (before, float(weight))
    except ValueError:
        return path, 1.0


def changed(before: dict[str, Any], cfg: TrainConfig) -> list[str]:
    """What differs from the settings that a run was begun with (its config.json) and may not, as "key was …, is …"."""

    def may(key: str, was: Any, now: Any) -> bool:
        if key == "data.path":  # stores may move, but not come or go
            return bool(was) == bool(now)
        if key in ("data.more", "data.videos"):
            return [split_weight(path)[1] for path in was or ()] == [split_weight(path)[1] for path in now or ()]
        return key in _MAY_CHANGE or key.split(".")[0] in _MAY_CHANGE

    then, now = _flat(before), _flat(to_dict(cfg))
    if then.get("diffusion.objective") == "flow":  # what a ddpm network says was no setting then
        default = _flat(to_dict(TrainConfig(out=cfg.out)))
        then = {key: value for key, value in default.items() if key.split(".")[-1] in CAME_LATER} | then
    pairs = {key: (then.get(key), now.get(key)) for key in (*now, *then)}
    return [f"{key} was {a!r}, is {b!r}" for key, (a, b) in pairs.items() if a != b and not may(key, a, b)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def evaluation_of(cfg: TrainConfig, out: str) -> EvalConfig:
    """The closed-loop evaluation that a training run's settings ask for, of its newest checkpoint."""
    shared = dataclasses.asdict(cfg.evaluation)
    return EvalConfig(
        checkpoint=cfg.out,
        out=out,
        tasks=list(cfg.env.tasks),
        env=cfg.env,
        device=cfg.training.device,
        threads=cfg.training.threads,
        **shared,
    )


def groups() -> dict[str, list[str]]:
    """What `group=name` on the command line may select: {"env": ["tabletop"], "experiment": [...], ...}."""
    folders = (path for path in sorted(shipped("configs").iterdir()) if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def dit_sizes() -> dict[str, tuple[int, int, int]]:
    """What `model=NAME` stands for: width, depth and heads of DiT's S, B, L and XL."""
    from omegaconf import OmegaConf

    read = {path.stem: OmegaConf.load(path) for path in (shipped("configs") / "model").glob("*.yaml")}
    return {name: (size.width, size.depth, size.heads) for name, size in read.items()}


def _explain(verb: str, overrides: Sequence[str], error: Exception) -> str:
    """Hydra's message in one paragraph, with the nearest key that exists."""
    if hasattr(error, "override"):  # hydra's OverrideParseException
        return f"padpolicy {verb}: cannot read {error.override!r}; write key=value, and close brackets and quotes."
    known = sorted(keys(SCHEMAS[verb]()))
    choices = groups()
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if not equals:
            return f"padpolicy {verb}: {override!r} is not a setting; write key=value, for example {known[-1]}=…"
        if key in choices:
            if value not in choices[key]:
                return f"padpolicy {verb}: unknown {override!r}. configs/{key}/ has: {', '.join(choices[key])}."
        elif key not in known:
            near = difflib.get_close_matches(key, known + list(choices), n=3)
            near = near or [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:3]
            hint = f"Did you mean {' or '.join(near)}?" if near else f"`padpolicy {verb} --help` lists them all."
            return f"padpolicy {verb}: unknown setting {key!r}. {hint}"
    text = str(error.__cause__ or error)
    field_name = next((line.split(":")[1].strip() for line in text.splitlines() if "full_key:" in line), "")
    text = " ".join(line for line in text.splitlines() if not re.match(r"\s*(full_key|\w+_type|See )", line))
    return f"padpolicy {verb}: {field_name + ': ' if field_name else ''}{' '.join(text.split())}"


def keys(node: Any, prefix: str = "") -> list[str]:
    """The dotted names of all settings below a configuration dataclass."""
    names: list[str] = []
    for key, value in vars(node).items():
        names += keys(value, f"{prefix}{key}.") if dataclasses.is_dataclass(value) else [prefix + key]
    return names


def _get(cfg: Any, key: str) -> Any:
    """The value of a dotted name, or None where this verb has no such setting."""
    for part in key.split("."):
        cfg = getattr(cfg, part, None)
    return cfg


def check(cfg: Any) -> None:
    """The rules on values and across fields. Raises ConfigError naming the setting, what it is and what it may be."""

    def need(ok: bool, message: str) -> None:
        if not ok:
            raise ConfigError(message)

    for key, choices in _CHOICES.items():
        value = _get(cfg, key)
        need(value is None or value in choices, f"{key}={value!r}: expected one of {', '.join(map(repr, choices))}.")
    for key, least in _AT_LEAST.items():
        value = _get(cfg, key)
        numbers = value if isinstance(value, list) else [value]
        need(all(number is None or number >= least for number in numbers), f"{key}={value}: at least {least}.")
    for key in _SHARES:
        value = _get(cfg, key)
        need(value is None or 0 <= value <= 1, f"{key}={value}: a share, between 0 and 1.")
    if isinstance(cfg, TrainConfig):
        _check_train(cfg, need)
    if isinstance(cfg, ServeConfig):
        _check_serve(cfg, need)
    if isinstance(cfg, BenchConfig):
        _check_bench(cfg, need)
        return
    out = getattr(cfg, "out", "")
    need(not (out and Path(out).is_file()), f"out={out} is a file; expected a directory to write into.")


def _check_train(cfg: TrainConfig, need: Callable[[bool, str], None]) -> None:
    data, model, diffusion, training = cfg.data, cfg.model, cfg.diffusion, cfg.training
    need(bool(data.path) or not data.more, "data.more=[…] stands beside data.path=STORE: give that one first.")
    need(bool(data.path or data.videos), "Nothing to train on: give data.path=STORE, data.videos=[FOLDER, …] or both.")
    need(data.dt_s > 0, f"data.dt_s={data.dt_s}: seconds between actions, more than 0.")
    need(
        all(o > 0 for o in data.future_offsets_s), f"data.future_offsets_s={data.future_offsets_s}: seconds after now."
    )
    headless = model.family == "unet"
    need(
        headless or model.width % model.heads == 0,
        f"model.width={model.width} is not a multiple of model.heads={model.heads}.",
    )
    need(model.width % 4 == 0, f"model.width={model.width}: 2-D positions need a multiple of 4.")
    need(
        model.depth_size % model.depth_patch == 0,
        f"model.depth_size={model.depth_size} is not a multiple of model.depth_patch={model.depth_patch}.",
    )
    need(
        training.batch_size % training.accumulate == 0,
        f"training.batch_size={training.batch_size} is not a multiple of training.accumulate={training.accumulate}.",
    )
    _check_diffusion(cfg, need)
    need(
        not model.stem_depth or model.eyes == "stem",
        f"model.stem_depth=true is for model.eyes=stem; it is {model.eyes!r}.",
    )
    need(
        not model.glance or model.text != "tokens",
        "model.glance=true asks with the pooled sentence, and model.text=tokens has none: use model.text=both.",
    )
    need(
        cfg.evaluation.exec_steps <= data.chunk_steps,
        f"evaluation.exec_steps={cfg.evaluation.exec_steps} is more than data.chunk_steps={data.chunk_steps}.",
    )
    need(
        not any(vars(cfg.augment).values()) or not data.cache_latents,
        "augment changes pictures, and data.cache_latents=true keeps what they looked like: set it to false.",
    )
    trained = {mode for mode, share in diffusion.modes.items() if share > 0}
    need(
        not diffusion.prefix_share or bool(trained & {"policy", "joint"}),
        f"diffusion.prefix_share={diffusion.prefix_share} teaches prefixes in the modes policy and joint, of which "
        "diffusion.modes has none: set prefix_share=0.",
    )
    if trained == {"video", "inverse"}:  # acts by both, one after the other
        ahead_s, chunk_s = max(data.future_offsets_s, default=0), data.chunk_steps * data.dt_s
        need(
            abs(ahead_s - chunk_s) <= data.dt_s / 2,
            f"data.future_offsets_s={data.future_offsets_s}: the last frame is where the actions lead, and "
            f"data.chunk_steps={data.chunk_steps} of data.dt_s={data.dt_s:g} end at {chunk_s:g} s.",
        )
    unguided = diffusion.guidance == 1 and diffusion.guidance_future in (0, 1)
    need(
        unguided or diffusion.text_dropout > 0,
        "diffusion.guidance compares with the null text, which diffusion.text_dropout=0 never teaches.",
    )
    known = FAMILIES[model.family] or ("policy", "joint", "forward", "inverse", "video")
    for name, modes in (("modes", diffusion.modes), ("video_modes", diffusion.video_modes)):
        for mode, weight in modes.items():
            near = difflib.get_close_matches(mode, known, n=1) or [", ".join(known)]
            of = f" model.family={model.family} has {', '.join(known)}." if FAMILIES[model.family] else ""
            unused = not weight or (name == "video_modes" and not data.videos)
            there = mode in known or (bool(of) and unused)
            need(there, f"diffusion.{name}: unknown mode {mode!r}; did you mean {near[0]}?{of}")
            need(weight >= 0, f"diffusion.{name}.{mode}={weight}: at least 0.")
        need(any(modes.values()), f"diffusion.{name}: every mode has weight 0; nothing would be trained.")


def _check_bench(cfg: BenchConfig, need: Callable[[bool, str], None]) -> None:
    looks_at, plain = ("what", "out", "threads", *_BENCH_READS[cfg.what]), BenchConfig()
    for key in vars(plain):
        if key not in looks_at and getattr(cfg, key) != getattr(plain, key):
            others = " and ".join(what for what, reads in _BENCH_READS.items() if key in reads)
            raise ConfigError(f"{key} is a setting of padpolicy bench {others}, not of {cfg.what}.")
    if cfg.what == "family":
        need(bool(cfg.out), "padpolicy bench family needs out=FOLDER: it trains for hours, and goes on there.")
        need(not Path(cfg.out).is_file(), f"out={cfg.out} is a file; expected a directory to write into.")
    else:
        is_folder = bool(cfg.out) and Path(cfg.out).is_dir()
        need(not is_folder, f"out={cfg.out} is a directory; expected a JSON file to write.")
    need(cfg.image_size % 32 == 0, f"image_size={cfg.image_size}: trunks take multiples of 32 pixels.")


def _check_serve(cfg: ServeConfig, need: Callable[[bool, str], None]) -> None:
    need(cfg.seed >= 0, f"seed={cfg.seed}: at least 0.")
    need(cfg.port <= 65535, f"port={cfg.port}: at most 65535.")
    for key in ("handshake_s", "ping_s", "idle_s"):
        need(getattr(cfg, key) > 0, f"{key}={getattr(cfg, key)}: seconds, more than 0.")
    need(
        bool(cfg.certfile) == bool(cfg.keyfile), "certfile and keyfile belong together: give both for TLS, or neither."
    )
    key = cfg.api_key or os.environ.get(API_KEY_VARIABLE, "")
    need(
        key.isascii() and (not key or key.isprintable()) and " " not in key,
        "api_key: printable ASCII characters without spaces, as it travels in an HTTP header.",
    )
    need(
        _only_here(cfg.host) or bool(key) or cfg.insecure,
        f"host={cfg.host} can be reached from other machines, and there is no key: set {API_KEY_VARIABLE} (or "
        "api_key=…), listen on host=127.0.0.1, or say insecure=true if everybody may use this policy.",
    )


def _only_here(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_diffusion(cfg: TrainConfig, need: Callable[[bool, str], None]) -> None:
    diffusion = cfg.diffusion
    ddpm_only = {
        "learn_variance": (diffusion.learn_variance, "true"),
        "predict_action": (diffusion.predict_action == "noise", "noise"),
        "predict_future": (diffusion.predict_future == "noise", "noise"),
        "loss": (diffusion.loss in ("bound", "hybrid"), diffusion.loss),
        "schedule": (diffusion.schedule != "linear", diffusion.schedule),
        "clip_action": (diffusion.clip_action > 0, diffusion.clip_action),
    }
    for key, (used, value) in ddpm_only.items():
        need(
            not used or diffusion.objective == "ddpm",
            f"diffusion.{key}={value} needs diffusion.objective=ddpm; it is {diffusion.objective!r}.",
        )
    need(
        diffusion.schedule == "shifted" or diffusion.schedule_shift == 1,
        f"diffusion.schedule_shift={diffusion.schedule_shift} needs diffusion.schedule=shifted.",
    )
    need(diffusion.schedule_shift > 0, f"diffusion.schedule_shift={diffusion.schedule_shift}: a ratio, more than 0.")
    samplers = SAMPLERS[diffusion.objective]
    for key, sampler in (("diffusion.sampler", diffusion.sampler), ("evaluation.sampler", cfg.evaluation.sampler)):
        need(
            sampler in ("", "auto", *samplers),
            f"{key}={sampler}: diffusion.objective={diffusion.objective} has {', '.join(samplers)}.",
        )
    need(
        bool(diffusion.tau_density) == (diffusion.tau_law == "importance"),
        "diffusion.tau_law=importance and diffusion.tau_density=[…] belong together: give both, or neither.",
    )
    need(
        all(density > 0 for density in diffusion.tau_density),
        f"diffusion.tau_density={diffusion.tau_density}: each more than 0, or some times are never trained.",
    )
    need(
        diffusion.tau_law != "importance" or diffusion.times != "future_noisier",
        "diffusion.tau_law=importance weighs a loss by the density of one time, and diffusion.times=future_noisier "
        "makes a time of two: use times=shared or times=independent.",
    )
    if diffusion.objective == "ddpm":
        _check_ddpm(cfg, need)


def _check_ddpm(cfg: TrainConfig, need: Callable[[bool, str], None]) -> None:
    diffusion, train_steps = cfg.diffusion, cfg.diffusion.train_steps
    need(
        diffusion.loss != "simple" or not diffusion.learn_variance,
        "diffusion.loss=simple never trains a variance, and diffusion.learn_variance=true: use loss=hybrid or bound.",
    )
    need(
        diffusion.loss != "hybrid" or diffusion.learn_variance,
        "diffusion.loss=hybrid trains a variance: it needs diffusion.learn_variance=true.",
    )
    need(
        diffusion.loss != "bound"
        or (diffusion.tau_law in ("uniform", "importance") and diffusion.times != "future_noisier"),
        "diffusion.loss=bound is a mean over uniform times: it needs diffusion.tau_law=uniform or importance, and "
        "diffusion.times=shared or independent.",
    )
    need(train_steps > 20, f"diffusion.train_steps={train_steps}: more than 20, or a step of ddpm leaves no signal.")
    own = SAMPLERS["ddpm"][0] if diffusion.sampler == "auto" else diffusion.sampler
    evaluated = {"": own, "auto": SAMPLERS["ddpm"][0]}.get(cfg.evaluation.sampler, cfg.evaluation.sampler)
    for key, steps, sampler in (
        ("diffusion.steps", diffusion.steps, own),
        ("evaluation.steps", cfg.evaluation.steps or diffusion.steps, evaluated),
    ):
        if sampler == "ancestral":
            need(steps <= train_steps, f"{key}={steps} is more than diffusion.train_steps={train_steps}.")
        else:
            need(
                train_steps % steps == 0,
                f"{key}={steps} does not divide diffusion.train_steps={train_steps}: {sampler} would stop short of "
                "clean data.",
            )
