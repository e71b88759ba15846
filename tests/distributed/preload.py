"""What the server of `tests.distributed.ranks` imports once for all ranks."""

import timm  # noqa: F401
import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.utils.tensorboard  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM  # noqa: F401

import vitp.commands.finetune
import vitp.commands.pretrain  # noqa: F401
