// The extension module: each topic registers itself.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace glimprouter::bindings {
void bind_graph_tables(py::module_& module);
void bind_device(py::module_& module);
void bind_device_layers(py::module_& module);
void bind_glimpse(py::module_& module);
void bind_host_decoder(py::module_& module);
void bind_kv_cache(py::module_& module);
void bind_kv_ops(py::module_& module);
void bind_layer_ops(py::module_& module);
void bind_step_boundary(py::module_& module);
void bind_step_router(py::module_& module);
void bind_token_ledger(py::module_& module);
void bind_unchanged(py::module_& module);
}  // namespace glimprouter::bindings

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native core of glimprouter.";
  glimprouter::bindings::bind_device(module);  // first: it may add kinds of devices
  glimprouter::bindings::bind_glimpse(module);
  glimprouter::bindings::bind_token_ledger(module);  // the KV cache takes its map
  glimprouter::bindings::bind_kv_cache(module);
  glimprouter::bindings::bind_kv_ops(module);
  glimprouter::bindings::bind_graph_tables(module);
  glimprouter::bindings::bind_layer_ops(module);
  glimprouter::bindings::bind_host_decoder(module);
  glimprouter::bindings::bind_unchanged(module);
  glimprouter::bindings::bind_device_layers(module);
  glimprouter::bindings::bind_step_boundary(module);
  glimprouter::bindings::bind_step_router(module);
}
