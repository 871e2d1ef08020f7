// What is known of a type of tensors: how to reach its memory, and whether that holds its values.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "dlpack_abi.hpp"

namespace glimprouter::bindings {

class BorrowedTensor;

struct TensorType {
  const dlpack::ExchangeApi* api = nullptr;  // null: the type has none
  bool torch = false;                        // torch.Tensor, or derived from it
  // Why tensors of this type are not read, to follow the name of the argument; empty: they are.
  // Types that interpret what lies in memory: torch subclasses with a dispatch of their own
  // (FakeTensor, DTensor, ...), masked arrays of NumPy, array subclasses with ufuncs of their own.
  std::string refusal;
};

// Looked up once a type. The GIL is held; the reference is good until Python code runs.
const TensorType& tensor_type(PyTypeObject* type);

// Of one torch tensor. Throw pybind11::value_error when its values are the negation of what is in
// memory, or its storage is shorter than its shape says.
void check_sign(PyObject* object, const char* what);
void check_storage(PyObject* object, const BorrowedTensor& tensor, const char* what);

}  // namespace glimprouter::bindings
