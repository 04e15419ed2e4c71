import sys
from types import ModuleType

# pytorch-metric-learning imports this part of FAISS, which replaces the methods of all its indexes by ones for torch.
sys.modules.setdefault("faiss.contrib.torch_utils", ModuleType("faiss.contrib.torch_utils"))
