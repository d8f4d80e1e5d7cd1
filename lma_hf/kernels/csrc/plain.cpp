// Plain C++: runs on any processor.
#define LMA_HF_INSTRUCTION_SET plain
#include "dispatch.h"

namespace lma_hf {
const Kernels* plain_kernels() { return plain::Dispatch<plain::Scalar>::table("plain"); }
}  // namespace lma_hf
