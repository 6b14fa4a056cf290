"""The process in which PyTorch's diffusers opens a single file and saves a folder.

`python -m ddpo_fair.models.converter FILE FOLDER CONFIGS`; CONFIGS may be empty.
https://huggingface.co/docs/diffusers/api/loaders/single_file
"""

import sys

import diffusers


def main(file: str, folder: str, configs: str) -> None:
    """Writes `folder` in the diffusers layout, in float32.

    Args:
        file: a local *.safetensors.
        folder: to be made.
        configs: a folder with configs and tokenizer; "" for those of the hub.
    """
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(
        file, config=configs or None, safety_checker=None, feature_extractor=None
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
