// The Python module blockops._C. Importing it loads the library, and with it every op registered in
// the other files; what Python sees is how the library was built, and a short way into each op.

#include <pybind11/pybind11.h>

#include "build_info.h"
#include "core/kept_memory.h"
#include "core/python.h"

PYBIND11_MODULE(_C, module) {
  module.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(BLOCKOPS_BUILD_INFO); },
      "How this library was built: the facts that setup.py decided, as a dict.");
  module.def(
      "keep_memory", [](size_t limit) { blockops::cpu::KeptMemory::get().set_limit(limit); },
      "Sets how many bytes of freed memory are kept, and drops what is kept beyond.");
  module.def(
      "kept_memory", [] { return blockops::cpu::KeptMemory::get().kept_and_limit(); },
      "How many bytes of freed memory are kept, and how many at most.");
  auto& functions = blockops::python::functions();
  functions.push_back({});  // the end of the list
  if (PyModule_AddFunctions(module.ptr(), functions.data()) != 0)
    throw pybind11::error_already_set();
}
