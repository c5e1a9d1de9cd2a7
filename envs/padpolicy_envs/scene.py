"""The tabletop scene as MJCF text: a 6-joint arm, a parallel gripper, three object slots and four fixtures.

One model is compiled once and serves every scene: a reset moves, recolours, shows and hides what is here.

Axes: x points from the robot towards the front camera, y to the right of the front picture, z up; the table top is
z = 0. Lengths in metres, angles in radians, masses in kilograms.
"""

from __future__ import annotations

import mujoco

CUBE_HALF = 0.024
CYLINDER_RADIUS = 0.024
CYLINDER_HALF = 0.024
OBJECT_HEIGHT = 2 * CUBE_HALF
OBJECT_WIDTH = 2 * CUBE_HALF

TRAY_INNER = 0.062  # half side of the inside
TRAY_WALL = 0.022  # height of the rim
BUTTON_HEIGHT = 0.040  # top of an unpressed button
BUTTON_TRAVEL = 0.014
DRAWER_TRAVEL = 0.11
DRAWER_HALF_WIDTH = 0.060
DRAWER_HEIGHT = 0.052
HANDLE_OFFSET = 0.058  # from the drawer front to the handle bar: room for the closed fingers

FINGER_TRAVEL = 0.045  # of each finger; the gripper opens to twice this
GRIPPER_WIDTH = 2 * FINGER_TRAVEL

OBJECT_SLOTS = 3
BUTTON_SLOTS = 2
ARM_JOINTS = ("base", "shoulder", "elbow", "forearm", "wrist", "flange")
HOME = (0.0, -0.15, 0.62, 0.0, -0.47, 0.0)  # any hand-down posture: inverse kinematics starts from it

# Geom groups.
TABLE, ARM, HAND, OBJECTS, FIXTURES, HIDDEN = range(6)

# Who touches whom (contype, conaffinity). Fixtures never meet the table or one another, so a hidden one costs nothing.
_TABLE = f'contype="1" conaffinity="0" group="{TABLE}"'
_HAND = f'contype="2" conaffinity="9" group="{HAND}"'
_OBJECT = f'contype="4" conaffinity="15" group="{OBJECTS}"'
_FIXTURE = f'contype="8" conaffinity="0" group="{FIXTURES}"'
_LINK = f'contype="0" conaffinity="0" group="{ARM}"'  # links of the arm: seen, never touched
_TRIM = f'contype="0" conaffinity="0" group="{HAND}"'  # parts of the hand that are only seen
OBJECT_CONTYPE, OBJECT_CONAFFINITY = 4, 15

_LIGHT_METAL = ".86 .87 .89 1"
_DARK_METAL = ".20 .21 .24 1"


def _arm() -> str:
    return f"""
    <body name="base" pos="-.10 0 0" gravcomp="1">
      <geom name="pedestal" type="cylinder" size=".075 .06" pos="0 0 .06" rgba="{_DARK_METAL}" {_LINK}/>
      <body name="turret" pos="0 0 .12" gravcomp="1">
        <joint name="base" axis="0 0 1" range="-2.6 2.6" armature=".3" damping="2"/>
        <geom type="capsule" size=".062" fromto="0 0 0 0 0 .21" rgba="{_LIGHT_METAL}" mass="2" {_LINK}/>
        <body name="upper_arm" pos="0 0 .22" gravcomp="1">
          <joint name="shoulder" axis="0 1 0" range="-2 2" armature=".3" damping="2"/>
          <geom type="capsule" size=".052" fromto="0 0 0 0 0 .40" rgba="{_LIGHT_METAL}" mass="2" {_LINK}/>
          <body name="elbow" pos="0 0 .40" gravcomp="1">
            <joint name="elbow" axis="0 1 0" range="-2 2" armature=".3" damping="2"/>
            <geom type="capsule" size=".056" fromto="0 -.03 0 0 .03 0" rgba="{_DARK_METAL}" mass=".5" {_LINK}/>
            <body name="forearm" gravcomp="1">
              <joint name="forearm" axis="1 0 0" range="-2 2" armature=".1" damping="1"/>
              <geom type="capsule" size=".034" fromto=".03 0 0 .38 0 0" rgba="{_LIGHT_METAL}" mass="1" {_LINK}/>
              <body name="wrist" pos=".40 0 0" gravcomp="1">
                <joint name="wrist" axis="0 1 0" range="-2.2 2.2" armature=".1" damping="1"/>
                <geom type="capsule" size=".034" fromto="0 -.018 0 0 .018 0" rgba="{_DARK_METAL}" mass=".4" {_LINK}/>
                {_hand()}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _hand() -> str:
    def finger(name: str, side: int) -> str:
        return f"""
                  <body name="{name}" pos="0 0 -.118" gravcomp="1">
                    <joint name="{name}" type="slide" axis="0 {side} 0" range="0 {FINGER_TRAVEL}" armature=".1"/>
                    <geom name="{name}" type="box" size=".012 .0065 .032" pos="0 {side * 0.0065} -.040"
                          rgba=".13 .13 .15 1" mass=".04" {_HAND} priority="1" friction="1.6 .03 .001"
                          condim="4" solref=".008 1" solimp=".95 .99 .001"/>
                    <geom type="box" size=".013 .0080 .010" pos="0 {side * 0.0070} -.063" rgba=".93 .93 .93 1"
                          mass=".001" {_TRIM}/>
                  </body>"""

    return f"""
                <body name="hand" gravcomp="1">
                  <joint name="flange" axis="0 0 1" range="-3 3" armature=".1" damping="1"/>
                  <geom type="cylinder" size=".028 .035" pos="0 0 -.055" rgba="{_LIGHT_METAL}" mass=".3" {_TRIM}/>
                  <geom name="palm" type="box" size=".020 .060 .016" pos="0 0 -.104" rgba="{_DARK_METAL}" mass=".3"
                        {_HAND} priority="1" friction=".3 .01 .001"/>
                  <camera name="wrist" pos=".085 0 -.085" xyaxes="0 1 0 -.906 0 .423" fovy="72"/>
                  <site name="tcp" pos="0 0 -.190" size=".004" group="4"/>
                  {finger("finger_left", -1)}
                  {finger("finger_right", 1)}
                </body>"""


def _objects() -> str:
    body = ""
    for i in range(OBJECT_SLOTS):
        contact = f'{_OBJECT} friction=".7 .01 .0005" condim="4" solref=".01 1"'
        body += f"""
    <body name="object{i}" pos="{2 + i} 2 .5">
      <freejoint name="object{i}"/>
      <inertial pos="0 0 0" mass=".10" diaginertia="4e-5 4e-5 4e-5"/>
      <geom name="object{i}_cube" type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" {contact}/>
      <geom name="object{i}_cylinder" type="cylinder" size="{CYLINDER_RADIUS} {CYLINDER_HALF}" {contact}/>
    </body>"""
    return body


def _fixture(name: str, kind: str, position: tuple[float, ...], size: tuple[float, ...], rgba: str, mass: float) -> str:
    pos, extent = (" ".join(f"{v:.5g}" for v in values) for values in (position, size))
    return f"""
      <geom name="{name}" type="{kind}" pos="{pos}" size="{extent}" rgba="{rgba}" mass="{mass}" {_FIXTURE}/>"""


def _tray() -> str:
    inner, rim, half = TRAY_INNER, 0.005, TRAY_WALL / 2
    floor, white = ".30 .31 .35 1", ".97 .97 .98 1"
    geoms = _fixture("tray_floor", "box", (0, 0, 0.002), (inner, inner, 0.002), floor, 0.1)
    for name, side in (("back", -1), ("front", 1)):
        size = (rim, inner + 2 * rim, half)
        geoms += _fixture(f"tray_{name}", "box", (side * (inner + rim), 0, half), size, white, 0.1)
    for name, side in (("left", -1), ("right", 1)):
        geoms += _fixture(f"tray_{name}", "box", (0, side * (inner + rim), half), (inner, rim, half), white, 0.1)
    return f"""
    <body name="tray" pos="0 0 -2">{geoms}
    </body>"""


def _buttons() -> str:
    body, low = "", (BUTTON_HEIGHT - 0.016) / 2
    for i in range(BUTTON_SLOTS):
        base = _fixture(f"button{i}_base", "cylinder", (0, 0, low), (0.040, low), ".16 .16 .18 1", 0.1)
        cap = _fixture(f"button{i}_cap", "cylinder", (0, 0, 0), (0.029, 0.010), "1 1 1 1", 0.02)
        body += f"""
    <body name="button{i}" pos="0 0 -2">{base}
      <body name="button{i}_cap" pos="0 0 {BUTTON_HEIGHT - 0.010}" gravcomp="1">
        <joint name="button{i}" type="slide" axis="0 0 -1" range="0 {BUTTON_TRAVEL}" stiffness="150" damping="4"
               armature=".05"/>{cap}
      </body>
    </body>"""
    return body


def _drawer() -> str:
    w, h, depth, bar = DRAWER_HALF_WIDTH, DRAWER_HEIGHT / 2, 0.065, HANDLE_OFFSET / 2
    wood, inside, dark = ".55 .36 .22 1", ".80 .66 .48 1", ".12 .12 .13 1"
    # The cabinet is one solid block: what of the drawer is inside it is hidden from the rays by its outer faces.
    cabinet = _fixture("cabinet", "box", (0, -depth, h), (w + 0.008, depth, h + 0.004), wood, 1)
    drawer = _fixture("drawer_front", "box", (0, 0.005, h), (w, 0.005, h), inside, 0.1)
    drawer += _fixture("drawer_floor", "box", (0, -0.06, 0.006), (w - 0.004, 0.06, 0.004), inside, 0.1)
    drawer += _fixture("drawer_side0", "box", (w - 0.006, -0.06, 0.024), (0.004, 0.06, 0.018), inside, 0.05)
    drawer += _fixture("drawer_side1", "box", (-w + 0.006, -0.06, 0.024), (0.004, 0.06, 0.018), inside, 0.05)
    drawer += _fixture("handle_bar", "box", (0, HANDLE_OFFSET + 0.01, 0.030), (0.045, 0.006, 0.014), dark, 0.05)
    drawer += _fixture("handle_arm0", "box", (0.041, bar + 0.008, 0.030), (0.005, bar, 0.008), dark, 0.02)
    drawer += _fixture("handle_arm1", "box", (-0.041, bar + 0.008, 0.030), (0.005, bar, 0.008), dark, 0.02)
    return f"""
    <body name="cabinet" pos="0 0 -2">{cabinet}
      <body name="drawer" gravcomp="1">
        <joint name="drawer" type="slide" axis="0 1 0" range="0 {DRAWER_TRAVEL}" damping="3" frictionloss="1.5"
               armature=".2"/>{drawer}
      </body>
    </body>"""


def _actuators() -> str:
    gains = {"base": 3000, "shoulder": 3000, "elbow": 3000, "forearm": 800, "wrist": 800, "flange": 800}
    text = "".join(f'<position name="{j}" joint="{j}" kp="{kp}" kv="{kp * 0.04}"/>' for j, kp in gains.items())
    for finger in ("finger_left", "finger_right"):
        # A spring-like finger: the squeeze grows with the object's width, and two of them centre it in the hand.
        text += f'<position name="{finger}" joint="{finger}" kp="600" kv="20" forcerange="-30 30"/>'
    return text


SERVO_LAG = 0.04  # kv / kp of the arm's servos [s]: commands lead by this much to cancel it

PHYSICS_DT = 0.004


def mjcf() -> str:
    """The whole scene as MJCF text."""
    return f"""
<mujoco model="padpolicy_tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_DT}" integrator="implicitfast" cone="elliptic" impratio="10" iterations="100"
          ls_iterations="50"/>
  <visual>
    <headlight ambient=".5 .5 .5" diffuse="0 0 0" specular="0 0 0"/>
    <map znear=".005" zfar="20"/>
    <quality shadowsize="512" offsamples="0"/>
  </visual>
  <worldbody>
    <light name="lamp" pos="1.1 0 1.3" dir="0 0 -1" cutoff="60" exponent="0" ambient="0 0 0" specular="0 0 0"/>
    <camera name="front" pos=".96 0 .66" xyaxes="0 1 0 -.753 0 .658" fovy="36"/>
    <geom name="table" type="plane" size="0 0 1" {_TABLE} friction=".7 .01 .0005"/>
    {_arm()}
    {_tray()}
    {_buttons()}
    {_drawer()}
    {_objects()}
  </worldbody>
  <actuator>{_actuators()}</actuator>
</mujoco>"""


def compile_model() -> mujoco.MjModel:
    """Compile the scene (about 10 ms; once per environment)."""
    return mujoco.MjModel.from_xml_string(mjcf())
