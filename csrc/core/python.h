// A short way for Python into the public ops. torch.ops matches each call against the schema and
// boxes its arguments, which for a small layer is a good part of the cost; the functions made here,
// attributes of blockops._C, unpack plain CPU tensors and call the dispatcher. All else (other
// devices, tensor subclasses, modes of __torch_function__, torch.func transforms, forward-mode AD,
// wrong types) they leave to blockops/_dispatch.py, by returning NotImplemented.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <tuple>
#include <vector>

#include "core/autograd.h"

namespace blockops::python {

// How an argument is unpacked; false where it is not of its type.
template <class T>
struct Argument;

template <>
struct Argument<const at::Tensor&> {
  at::Tensor tensor;  // its own reference: the object may change while the GIL is away
  int64_t elements() const { return tensor.numel(); }
  bool take(PyObject* object) {
    if (!THPVariable_CheckTypeExact(Py_TYPE(object))) return false;
    tensor = THPVariable_Unpack(object);
    return tensor.is_cpu() && !tensor._fw_grad(0).defined();
  }
  const at::Tensor& get() const { return tensor; }
};

template <>
struct Argument<const std::optional<at::Tensor>&> {
  std::optional<at::Tensor> tensor;
  int64_t elements() const { return tensor ? tensor->numel() : 0; }
  bool take(PyObject* object) {
    if (object == Py_None) return true;
    Argument<const at::Tensor&> given;
    if (!given.take(object)) return false;
    tensor = given.get();
    return true;
  }
  const std::optional<at::Tensor>& get() const { return tensor; }
};

template <>
struct Argument<at::OptionalIntArrayRef> {
  std::optional<at::DimVector> ints;
  int64_t elements() const { return 0; }
  bool take(PyObject* object) {
    if (object == Py_None) return true;
    ints.emplace();
    if (!PyTuple_CheckExact(object)) return append(object);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i)
      if (!append(PyTuple_GET_ITEM(object, i))) return false;
    return true;
  }
  at::OptionalIntArrayRef get() const {
    return ints ? at::OptionalIntArrayRef(*ints) : at::OptionalIntArrayRef();
  }

 private:
  bool append(PyObject* object) {
    int overflow = 0;
    if (!PyLong_CheckExact(object)) return false;
    ints->push_back(PyLong_AsLongLongAndOverflow(object, &overflow));
    return overflow == 0;
  }
};

inline bool in_a_mode() {
  return at::impl::PythonTorchFunctionTLS::stack_len() > 0 ||
         c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

// A call on no more elements than this, which takes a fraction of a millisecond at most, keeps the
// GIL: letting it go and taking it again costs the smallest calls some percent of their time.
// Python's own threads keep it for 5 ms.
constexpr int64_t kBrief = 1 << 14;

template <class... Args>
PyObject* call(const c10::TypedOperatorHandle<at::Tensor(Args...)>& op, PyObject* const* given,
               Py_ssize_t count) {
  std::tuple<Argument<Args>...> arguments;
  const auto take = [&](auto&... argument) { return (argument.take(*given++) && ...); };
  if (count != sizeof...(Args) || in_a_mode() || !std::apply(take, arguments))
    Py_RETURN_NOTIMPLEMENTED;
  at::Tensor result;
  {
    std::optional<pybind11::gil_scoped_release> no_gil;
    const auto elements = [](auto&... argument) { return (argument.elements() + ...); };
    if (std::apply(elements, arguments) > kBrief) no_gil.emplace();
    result = std::apply([&](auto&... argument) { return op.call(argument.get()...); }, arguments);
  }
  return THPVariable_Wrap(std::move(result));
}

// Those of all ops; module.cpp gives them to the module.
inline std::vector<PyMethodDef>& functions() {
  static std::vector<PyMethodDef> all;
  return all;
}

}  // namespace blockops::python

// At namespace scope: makes blockops._C.<op>.
#define BLOCKOPS_PYTHON_FUNCTION(op, Signature)                                               \
  static PyObject* op##_from_python(PyObject*, PyObject* const* given, Py_ssize_t count) {    \
    HANDLE_TH_ERRORS                                                                          \
    static const auto handle = blockops::typed_op<Signature, blockops::Native>(#op);          \
    return blockops::python::call(handle, given, count);                                      \
    END_HANDLE_TH_ERRORS                                                                      \
  }                                                                                           \
  [[maybe_unused]] static const auto& op##_in_python =                                        \
      blockops::python::functions().emplace_back(PyMethodDef{                                 \
          #op, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(op##_from_python)), \
          METH_FASTCALL, nullptr});
