"""A process that makes pictures with a saved Stable Diffusion and says when it had imported, loaded and made them.

    python -m benchmarks._gpu.first_picture LIBRARY FOLDER DEVICE TYPE SIDE STEPS

It prints one line of JSON, whose times are in seconds since 1970, as those of the process that started it.
"""

import importlib
import json
import sys
import time


def main() -> None:
    name, folder, device, dtype, side, steps = sys.argv[1:]
    import torch

    library = importlib.import_module(name)
    kind = library.StableDiffusionPipeline
    imported = time.time()
    pipe = kind.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    loaded, made = time.time(), []
    for _ in range(3):
        pipe("a red ball on the grass", height=int(side), width=int(side), num_inference_steps=int(steps))
        made.append(time.time())
    found = {"imported": imported, "loaded": loaded, "made": made}
    if device == "cuda":
        found["allocated"] = torch.cuda.max_memory_allocated() / 2**30
        found["reserved"] = torch.cuda.max_memory_reserved() / 2**30
    acceleration = getattr(pipe, "acceleration", None)
    print(json.dumps({**found, "report": acceleration.report() if acceleration else ""}))


if __name__ == "__main__":
    main()
