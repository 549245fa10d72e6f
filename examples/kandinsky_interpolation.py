"""A picture between a text and another picture: Kandinsky 2.2's prior adds up their embeddings by weights.

python examples/kandinsky_interpolation.py [PRIOR DECODER, such as kandinsky-community/kandinsky-2-2-prior and
kandinsky-community/kandinsky-2-2-decoder]
"""

import torch

from calotype import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from tiny import DEVICE, DTYPE, checkpoint, photo, side

prior = KandinskyV22PriorPipeline.from_pretrained(checkpoint("kandinsky-prior"), torch_dtype=DTYPE)
prior = prior.to(DEVICE)
decoder = KandinskyV22Pipeline.from_pretrained(checkpoint("kandinsky", 2), torch_dtype=DTYPE)
decoder = decoder.to(DEVICE)

generator = torch.Generator("cpu").manual_seed(7)
embeddings = prior.interpolate(["a cat", photo()], [0.4, 0.6], num_inference_steps=10, generator=generator)
image = decoder(
    **embeddings, num_inference_steps=10, height=side(768), width=side(768), generator=generator
).images[0]
image.save("kandinsky_interpolation.png")
