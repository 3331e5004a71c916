// The Python module blockops._C. Importing it loads the library, and with it every op registered in
// the other files; what Python sees is only how the library was built.

#include <pybind11/pybind11.h>

#include "build_info.h"

PYBIND11_MODULE(_C, module) {
  module.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(BLOCKOPS_BUILD_INFO); },
      "How this library was built: the facts that setup.py decided, as a dict.");
}
