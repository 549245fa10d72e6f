"""A few pictures with captions become LoRA weights, and those a picture.

python examples/train_lora.py [REPOSITORY [FOLDER OF PICTURES WITH CAPTIONS]]
"""

import sys
from pathlib import Path

import calotype
from tiny import checkpoint, photo, side

repository = checkpoint("stable-diffusion")
if len(sys.argv) > 2:
    pictures = Path(sys.argv[2])
else:
    pictures = Path("pictures")
    pictures.mkdir(exist_ok=True)
    for number in range(4):
        photo().rotate(90 * number).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a painting of a ball at sunset")

folder = calotype.train_lora(
    pretrained_model_name_or_path=repository,
    train_data_dir=pictures,
    output_dir="lora",
    resolution=side(512),
    rank=4,
    max_train_steps=1000 if len(sys.argv) > 1 else 4,
)

pipeline = calotype.load(repository)
pipeline.load_lora_weights(folder)
image = pipeline("a painting of a ball at sunset", num_inference_steps=20).images[0]
image.save("lora.png")
