"""Kandinsky 2.0 in one object: a text in two languages, then its picture changed as a whole and in a part.

python examples/kandinsky_2_0.py [FOLDER with the files as published: Kandinsky-2-0.pt, text_encoder1/ and the others]
"""

from pathlib import Path

import calotype
from calotype.utils import make_image_grid
from tiny import checkpoint, mask, side

folder = checkpoint("kandinsky-2-0")
# what was published are pickles, which are read only when asked for; a copy by save_pretrained has none
published = not (Path(folder) / "model_index.json").is_file()
pipeline = calotype.load(folder, use_safetensors=False if published else None)
size, usual = side(512), {"num_inference_steps": 25, "guidance_scale": 10.0}

bear = pipeline("A teddy bear на красной площади", height=size, width=size, seed=31, **usual).images[0]
painted = pipeline("an oil painting of a bear", image=bear, strength=0.4, seed=31, **usual).images[0]
part = mask().resize((size, size))
cat = pipeline(
    "красная кошка", image=bear, mask_image=part, height=size, width=size, seed=31, **usual
).images[0]
make_image_grid([bear, painted, cat], rows=1, cols=3).save("kandinsky_2_0.png")
