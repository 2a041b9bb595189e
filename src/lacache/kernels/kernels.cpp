// The operators `torch.ops.lacache.*` on CPU.

#include <torch/library.h>

#include "attention.h"
#include "chunk_attention.h"
#include "compaction.h"
#include "decode_step.h"
#include "packed.h"
#include "products.h"

TORCH_LIBRARY(lacache, library) {
  library.def("product(Tensor weight, Tensor vector) -> Tensor");
  library.def(
      "attend(Tensor query, Tensor keys, Tensor values, Tensor first_slots, Tensor last_slots) -> Tensor");
  library.def(
      "attend_coded(Tensor query, Tensor keys, Tensor key_scales, Tensor values, "
      "Tensor value_scales, Tensor first_slots, Tensor last_slots) -> Tensor");
  library.def(
      "attend_chunk(Tensor query, Tensor keys, Tensor values, Tensor first_slots, int[] num_stored, "
      "Tensor new_keys, Tensor new_values, Tensor[] other_keys, Tensor[] visible, float scaling) -> Tensor");
  library.def(
      "packed_product(Tensor low, Tensor? high, Tensor scales, Tensor? factors, Tensor? offsets, "
      "Tensor? offset_factors, int zero, int rows, Tensor states, bool exact) -> Tensor");
  library.def(
      "packed_numbers(Tensor low, Tensor? high, Tensor scales, Tensor? factors, Tensor? offsets, "
      "Tensor? offset_factors, int zero, int rows, int first_block, int num_blocks, "
      "ScalarType dtype) -> Tensor");
  library.def("gather(Tensor(a!) stored, Tensor slots, int start) -> ()");
  library.def("move(Tensor(a!) stored, Tensor moves) -> ()");
  library.def("move_few(Tensor(a!) stored, Tensor first, Tensor patterns, Tensor moves) -> ()");
  library.def(
      "gather_slots(Tensor(a!) stored, Tensor first, Tensor patterns, Tensor sources, Tensor starts) "
      "-> ()");
  library.def(
      "rotate_slots(Tensor(a!) stored, Tensor first, Tensor patterns, Tensor copies, "
      "Tensor first_copies, Tensor ranges, Tensor cosines, Tensor sines, Tensor partners) -> ()");
  library.def(
      "store_left(Tensor(a!) stored, Tensor first, Tensor[] moved, Tensor[] added, Tensor tokens) -> ()");
  library.def("rotate(Tensor keys, Tensor cosines, Tensor sines, Tensor partners) -> Tensor");
  library.class_<DecodeStep>("DecodeStep")
      .def(torch::init<int64_t, bool>())
      .def("add_plain", &DecodeStep::add_plain)
      .def("add_packed", &DecodeStep::add_packed)
      .def("add_layer", &DecodeStep::add_layer)
      .def("set_ends", &DecodeStep::set_ends)
      .def("set_slots", &DecodeStep::set_slots)
      .def("step", &DecodeStep::step);
}

TORCH_LIBRARY_IMPL(lacache, CPU, library) {
  library.impl("product", product);
  library.impl("attend", attend);
  library.impl("attend_coded", attend_coded);
  library.impl("attend_chunk", attend_chunk);
  library.impl("packed_product", packed_product);
  library.impl("packed_numbers", packed_numbers);
  library.impl("gather", gather);
  library.impl("move", move);
  library.impl("move_few", move_few);
  library.impl("gather_slots", gather_slots);
  library.impl("rotate_slots", rotate_slots);
  library.impl("store_left", store_left);
  library.impl("rotate", rotate);
}
