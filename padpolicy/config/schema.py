"""Every setting of padpolicy: default, unit and why it is there. YAML files in `configs/` hold only differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    hold_future: bool = False  # frames behind a demonstration's end are its last one, as targets; otherwise none
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

    # run directory, checkpoint directory, hub:OWNER/NAME[@REVISION], or a shipped policy: "tabletop", "metaworld10"
    checkpoint: str = MISSING
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

FAMILIES = {  # family -> the modes that its network has; (): all
    "padpolicy": (),
    "pad": ("joint", "video"),
    "unet": ("policy",),
    "transformer": ("policy",),
}

SAMPLERS = {"flow": ("euler", "heun"), "ddpm": ("ddim", "ancestral", "dpmsolver++")}  # the first is "auto"

# Settings that older policies and runs lack: their default is what was done before.
CAME_LATER = (
    "hold_future",
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
