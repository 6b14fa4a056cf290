"""Everything that an image of a face is a function of."""

import dataclasses

import numpy as np

# How much of the person the image shows. A classifier of faces should answer
# "none" to the last two.
NEAR, FAR, TURNED_AWAY, OUT_OF_FRAME = "near", "far", "turned away", "out of frame"


@dataclasses.dataclass(frozen=True)
class Face:
    """The attributes of one image. Colours are float [3] in [0, 1]."""

    male: bool
    masculinity: float
    age: float  # 0 young, 1 old
    ancestry: np.ndarray  # [3]: African, Asian, European; sums to 1
    tone: float  # 0 light to 7 dark
    weight: float  # -1 thin, 1 heavy
    muscle: float  # 0 average, 1 strong
    shape_seed: int  # of the features' shapes
    hair: str
    hair_colour: np.ndarray
    hair_phase: float
    hair_bottom: float  # height of the tips, dm in the rest pose
    hair_opening: float  # how far long hair leaves the face free, about 1
    hairline: float  # dm upwards
    receding: float  # dm at the temples
    fringe: bool
    parting: float  # -1 to 1
    volume: float
    wave: float
    brow: float
    brow_colour: np.ndarray
    beard: float
    stubble: float
    moustache: float
    lipstick: float
    liner: float
    lip_colour: np.ndarray
    iris_colour: np.ndarray
    smile: float
    cut: str
    cloth_colour: np.ndarray
    accent_colour: np.ndarray
    tie_colour: np.ndarray
    headgear: str
    headgear_colour: np.ndarray
    glasses: bool
    glasses_colour: np.ndarray
    view: str  # NEAR, FAR, TURNED_AWAY or OUT_OF_FRAME
    yaw: float  # degrees
    pitch: float
    roll: float
    zoom: float
    shift: np.ndarray  # [2], right and down, in image widths
    light: np.ndarray  # [2]: azimuth, elevation in degrees
    ambient: float
    warmth: float
    background: np.ndarray  # [2, 3]: top and bottom

    @property
    def femininity(self) -> float:
        """1 - masculinity."""
        return 1 - self.masculinity
