"""MetaWorld's 50 tasks: their tiers, and words that tell each of them from all others.

The tiers are those of Seo et al., "Masked World Models for Visual Control" (arXiv:2206.14244), which published tables
use: easy 28, medium 11, hard 6, very hard 5.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

TIERS = ("easy", "medium", "hard", "very hard")


@dataclass(frozen=True)
class Task:
    """A task of MetaWorld under its name without the version ("door-open" is MetaWorld's door-open-v3).

    `family` is its tier, the word that tables of all environments group by. `paraphrases` are the wordings of training,
    the canonical one first; `held_out_paraphrase` is kept out of training, and each of its words occurs in training.
    """

    name: str
    family: str
    paraphrases: tuple[str, ...]
    held_out_paraphrase: str
    held_out: bool = False

    @property
    def instruction(self) -> str:
        """The canonical wording."""
        return self.paraphrases[0]


# Per task: four wordings of training, then the one that is held out.
_WORDINGS = {
    "easy": {
        "button-press": (
            "press the button on the front of the box",
            "push in the button at the front",
            "press the front button",
            "push the button on the front of the box",
            "press in the button at the front of the box",
        ),
        "button-press-topdown": (
            "press the button on top of the box",
            "push down the button from above",
            "press the top button down",
            "push the button on top of the box",
            "press down the button on top from above",
        ),
        "button-press-topdown-wall": (
            "press the button on top of the box behind the wall",
            "push down the button behind the wall from above",
            "press the top button down over the wall",
            "reach over the wall and push the button on top",
            "reach over the wall and press down the button from above",
        ),
        "button-press-wall": (
            "press the button on the front of the box behind the wall",
            "go around the wall and push in the button at the front",
            "press the front button behind the wall",
            "reach around the wall and press the front button",
            "go around the wall and press the button on the front",
        ),
        "coffee-button": (
            "press the button of the coffee machine",
            "start the coffee machine",
            "push the coffee button",
            "push in the button of the coffee machine",
            "press the coffee button of the machine",
        ),
        "dial-turn": (
            "turn the dial",
            "rotate the dial",
            "turn the dial around",
            "give the dial a turn",
            "rotate the dial around",
        ),
        "door-close": (
            "close the door",
            "shut the door",
            "push the door closed",
            "push the door shut",
            "swing the door shut",
        ),
        "door-lock": (
            "lock the door",
            "turn the lock down to lock the door",
            "rotate the lock to lock the door",
            "push the lock of the door down",
            "rotate the lock of the door down",
        ),
        "door-open": (
            "open the door",
            "pull the door open",
            "swing the door open",
            "pull the handle of the door to open it",
            "swing open the door by its handle",
        ),
        "door-unlock": (
            "unlock the door",
            "turn the lock back to unlock the door",
            "rotate the lock to unlock the door",
            "push the lock of the door back",
            "rotate the lock of the door back to unlock it",
        ),
        "drawer-close": (
            "close the drawer",
            "shut the drawer",
            "push the drawer in",
            "push the drawer shut",
            "push the drawer closed",
        ),
        "drawer-open": (
            "open the drawer",
            "pull the drawer open",
            "pull out the drawer",
            "pull the drawer open by its handle",
            "pull open the drawer",
        ),
        "faucet-close": (
            "close the faucet",
            "turn off the faucet",
            "rotate the faucet to shut off the water",
            "shut the faucet",
            "turn the faucet to close it",
        ),
        "faucet-open": (
            "open the faucet",
            "turn on the faucet",
            "rotate the faucet to let the water run",
            "let the faucet run",
            "turn the faucet to open it",
        ),
        "handle-press": (
            "press the handle down",
            "push down the handle",
            "press down on the handle",
            "push the handle to the bottom",
            "push down on the handle",
        ),
        "handle-press-side": (
            "press the sideways handle down",
            "push down the handle on the side",
            "press down on the side handle",
            "push the sideways handle to the bottom",
            "push down on the sideways handle",
        ),
        "handle-pull": (
            "pull the handle up",
            "lift the handle",
            "pull up on the handle",
            "raise the handle to the top",
            "pull the handle to the top",
        ),
        "handle-pull-side": (
            "pull the sideways handle up",
            "lift the handle on the side",
            "pull up on the side handle",
            "raise the sideways handle to the top",
            "pull up the handle on the side",
        ),
        "lever-pull": (
            "pull the lever up",
            "lift the lever",
            "raise the lever",
            "rotate the lever up",
            "pull up the lever",
        ),
        "peg-unplug-side": (
            "unplug the peg from the box",
            "pull the peg out of the hole in the box sideways",
            "pull the peg out of its plug",
            "take the plugged peg out of the box",
            "unplug the peg sideways from its hole",
        ),
        "plate-slide": (
            "slide the plate into the goal in front",
            "push the plate forward into the cabinet",
            "slide the plate forward to the goal",
            "push the plate into the goal",
            "push the plate forward to the goal",
        ),
        "plate-slide-back": (
            "slide the plate back out of the goal",
            "pull the plate back towards the robot",
            "drag the plate backward out of the cabinet",
            "pull the plate out of the goal",
            "drag the plate back out of the goal",
        ),
        "plate-slide-back-side": (
            "slide the plate back out of the goal at the side",
            "drag the plate sideways out of the cabinet",
            "pull the plate out of the goal to the side",
            "get the plate out of the side cabinet",
            "drag the plate out of the goal at the side",
        ),
        "plate-slide-side": (
            "slide the plate sideways into the goal",
            "push the plate sideways into the cabinet",
            "slide the plate into the cabinet at the side",
            "push the plate to the goal at the side",
            "push the plate into the goal at the side",
        ),
        "reach": (
            "reach the goal marker",
            "move the hand to the goal marker",
            "go to the goal marker",
            "reach to the marker with the hand",
            "move to the goal marker",
        ),
        "reach-wall": (
            "reach the goal marker behind the wall",
            "move the hand around the wall to the goal marker",
            "go over the wall to the goal marker",
            "reach past the wall to the marker",
            "move past the wall to the goal marker",
        ),
        "window-close": (
            "close the window",
            "shut the window",
            "slide the window shut",
            "push the window closed",
            "slide the window closed",
        ),
        "window-open": (
            "open the window",
            "slide the window open",
            "push the window open",
            "slide open the window by its handle",
            "push open the window",
        ),
    },
    "medium": {
        "basketball": (
            "put the basketball in the basket",
            "dunk the basketball",
            "throw the basketball into the basket",
            "lift the basketball and drop it through the hoop",
            "drop the basketball into the basket",
        ),
        "bin-picking": (
            "move the block from one bin to the other",
            "pick the block out of the bin and put it in the other bin",
            "take the block to the other bin",
            "put the block into the other bin",
            "pick the block and move it to the other bin",
        ),
        "box-close": (
            "close the box with the lid",
            "put the lid on the box",
            "place the cover on the box",
            "cover the box with its lid",
            "place the lid on the box",
        ),
        "coffee-pull": (
            "pull the mug away from the coffee machine",
            "take the mug from under the coffee machine",
            "drag the coffee mug away from the machine",
            "pull the coffee mug back to the goal",
            "drag the mug away from under the coffee machine",
        ),
        "coffee-push": (
            "push the mug under the coffee machine",
            "slide the mug under the coffee machine",
            "put the mug below the coffee machine",
            "push the coffee mug forward to the machine",
            "slide the coffee mug forward under the machine",
        ),
        "hammer": (
            "hammer the nail",
            "hit the nail with the hammer",
            "drive the nail in with the hammer",
            "pick up the hammer and hit the nail",
            "pick up the hammer and drive in the nail",
        ),
        "peg-insert-side": (
            "insert the peg into the hole in the side of the box",
            "put the peg into the hole sideways",
            "push the peg into the side of the box",
            "plug the peg into the box",
            "insert the peg sideways into the box",
        ),
        "push-wall": (
            "push the puck to the goal behind the wall",
            "push the puck around the wall",
            "slide the puck past the wall to the goal",
            "bypass the wall with the puck and push it to the goal",
            "slide the puck around the wall to the goal",
        ),
        "soccer": (
            "kick the ball into the net",
            "push the soccer ball into the goal",
            "score a goal with the soccer ball",
            "roll the soccer ball into the net",
            "kick the soccer ball into the goal",
        ),
        "sweep": (
            "sweep the block off the table",
            "push the block off the side of the table",
            "sweep the block over the edge of the table",
            "wipe the block off the table",
            "wipe the block over the edge of the table",
        ),
        "sweep-into": (
            "sweep the block into the hole in the table",
            "push the block into the square hole",
            "drag the block into the hole in the table",
            "sweep the block into the hole",
            "push the block into the hole in the table",
        ),
    },
    "hard": {
        "assembly": (
            "put the ring on the peg",
            "place the nut onto the peg",
            "pick up the nut and put it over the peg",
            "assemble the nut and the peg",
            "pick up the ring and place it over the peg",
        ),
        "hand-insert": (
            "insert the hand into the hole",
            "put the gripper into the hole",
            "reach down into the hole with the hand",
            "move the hand down into the hole",
            "put the hand down into the hole",
        ),
        "pick-out-of-hole": (
            "pick the puck out of the hole",
            "take the puck out of the hole and bring it to the goal",
            "lift the puck out of the hole",
            "get the puck from the hole",
            "take the puck up out of the hole",
        ),
        "pick-place": (
            "pick up the puck and hold it at the goal",
            "pick and place the puck at the goal",
            "lift the puck to the goal",
            "carry the puck through the air to the goal",
            "pick up the puck and carry it to the goal",
        ),
        "push": (
            "push the puck to the goal",
            "slide the puck forward on the table to the goal",
            "push the puck forward",
            "move the puck along the table to the goal",
            "push the puck along the table to the goal",
        ),
        "push-back": (
            "push the block back to the goal",
            "pull the block back to the goal",
            "drag the block backward",
            "push the block backward towards the robot",
            "drag the block back towards the robot",
        ),
    },
    "very hard": {
        "disassemble": (
            "take the ring off the peg",
            "remove the nut from the peg",
            "lift the nut off the peg",
            "disassemble the nut and the peg",
            "remove the ring from the peg",
        ),
        "pick-place-wall": (
            "pick up the puck and carry it over the wall to the goal",
            "pick and place the puck behind the wall",
            "lift the puck over the wall",
            "bring the puck over the wall to the goal",
            "pick up the puck and bring it behind the wall",
        ),
        "shelf-place": (
            "put the block on the shelf",
            "place the block onto the shelf",
            "pick up the block and put it on the shelf",
            "lift the block onto the shelf",
            "pick up the block and place it on the shelf",
        ),
        "stick-pull": (
            "pull the thermos with the stick",
            "grab the stick and pull the thermos back with it",
            "use the stick to drag the thermos back",
            "hook the thermos with the stick and pull it",
            "use the stick to pull the thermos back",
        ),
        "stick-push": (
            "push the thermos with the stick",
            "grab the stick and push the thermos forward with it",
            "use the stick to push the thermos away",
            "hold the stick and push the thermos to the goal",
            "use the stick to push the thermos forward",
        ),
    },
}

TASKS: dict[str, Task] = {
    name: Task(name, tier, wordings[:-1], wordings[-1])
    for tier, tasks in _WORDINGS.items()
    for name, wordings in tasks.items()
}


def get_task(name: str) -> Task:
    """The task of this name, with or without MetaWorld's "-v3". Raises ValueError with the nearest names."""
    name = name.removesuffix("-v3")
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.3)
        raise ValueError(f"task: expected one of MetaWorld's 50, got {name!r}; did you mean {', '.join(near)}?")
    return TASKS[name]
