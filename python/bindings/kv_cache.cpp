// KvLayout, PagePool, KvCache and RaggedBatch.
#include "glimprouter/kv_cache.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "glimprouter/arena_on.hpp"
#include "glimprouter/types/page_tables.hpp"
#include "index_list.hpp"
#include "kv_cache_docs.hpp"
#include "tensor_access.hpp"
#include "token_bytes.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

using Pools = std::vector<std::shared_ptr<PagePool>>;

DataType data_type(const std::string& name) {
  if (name == "float32") return DataType::kFloat32;
  if (name == "bfloat16") return DataType::kBFloat16;
  if (name == "float16") return DataType::kFloat16;
  throw py::value_error("dtype must be \"float32\", \"bfloat16\" or \"float16\", got \"" + name +
                        "\"");
}

// A read-only view of one column; `owner` keeps the memory alive.
template <typename Value>
py::array column(const std::vector<Value>& values, const py::object& owner) {
  py::array_t<Value> view(static_cast<py::ssize_t>(values.size()), values.data(), owner);
  view.attr("flags").attr("writeable") = false;
  return view;
}

// An array that owns what was a vector.
template <typename Value>
py::array owned(std::vector<Value> values) {
  auto* const kept = new std::vector<Value>(std::move(values));
  const py::capsule owner(kept,
                          [](void* memory) { delete static_cast<std::vector<Value>*>(memory); });
  return py::array_t<Value>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

template <auto Member>
void def_column(py::class_<RaggedBatch>& batch, const char* name, const char* doc) {
  batch.def_property_readonly(
      name, [](const py::object& self) { return column(self.cast<RaggedBatch&>().*Member, self); },
      doc);
}

void bind_layer_shape(py::module_& module) {
  py::class_<LayerShape>(module, "LayerShape", docs::kLayerShape)
      .def(py::init([](std::int32_t num_kv_heads, std::int32_t head_dim,
                       std::optional<std::int32_t> value_dim, std::optional<std::int32_t> shares,
                       bool latent) {
             return LayerShape{num_kv_heads, head_dim, value_dim.value_or(head_dim),
                               shares.value_or(-1), latent};
           }),
           py::kw_only(), py::arg("num_kv_heads"), py::arg("head_dim"),
           py::arg("value_dim") = py::none(), py::arg("shares") = py::none(),
           py::arg("latent") = false)
      .def_readonly("num_kv_heads", &LayerShape::num_kv_heads)
      .def_readonly("head_dim", &LayerShape::head_dim)
      .def_readonly("value_dim", &LayerShape::value_dim)
      .def_property_readonly("shares",
                             [](const LayerShape& shape) {
                               return shape.shares < 0 ? std::nullopt : std::optional(shape.shares);
                             })
      .def_readonly("latent", &LayerShape::latent)
      .def(
          "__eq__", [](const LayerShape& a, const LayerShape& b) { return a == b; },
          py::is_operator());
}

void bind_layer_layout(py::module_& module) {
  py::class_<LayerLayout>(module, "LayerLayout", docs::kLayerLayout)
      .def_readonly("num_kv_heads", &LayerLayout::num_kv_heads)
      .def_readonly("head_dim", &LayerLayout::head_dim)
      .def_readonly("value_dim", &LayerLayout::value_dim)
      .def_readonly("key_offset", &LayerLayout::key_offset)
      .def_readonly("key_head_stride", &LayerLayout::key_head_stride)
      .def_readonly("key_token_stride", &LayerLayout::key_token_stride)
      .def_readonly("value_offset", &LayerLayout::value_offset)
      .def_readonly("value_head_stride", &LayerLayout::value_head_stride)
      .def_readonly("value_token_stride", &LayerLayout::value_token_stride);
}

const LayerLayout& layer_of(const KvLayout& layout, std::int32_t layer) {
  if (layer >= 0 && layer < layout.num_layers()) return layout.layer(layer);
  throw py::index_error("layer must lie in [0, " + std::to_string(layout.num_layers()) + "), got " +
                        std::to_string(layer));
}

void bind_layout(py::module_& module) {
  bind_layer_shape(module);
  bind_layer_layout(module);
  py::class_<KvLayout>(module, "KvLayout", docs::kKvLayout)
      .def(py::init([](std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t head_dim,
                       std::int32_t page_size, const std::string& dtype) {
             return KvLayout::make(num_layers, num_kv_heads, head_dim, page_size, data_type(dtype));
           }),
           py::kw_only(), py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"),
           py::arg("page_size"), py::arg("dtype"))
      .def(py::init([](const std::vector<LayerShape>& layers, std::int32_t page_size,
                       const std::string& dtype) {
             return KvLayout::make(layers, page_size, data_type(dtype));
           }),
           py::kw_only(), py::arg("layers"), py::arg("page_size"), py::arg("dtype"))
      .def_property_readonly("num_layers", &KvLayout::num_layers)
      .def_property_readonly("page_size", &KvLayout::page_size)
      .def_property_readonly("page_bytes", &KvLayout::page_bytes)
      .def_property_readonly("layers",
                             [](const KvLayout& layout) {
                               std::vector<LayerShape> shapes;
                               for (std::int32_t i = 0; i < layout.num_layers(); ++i) {
                                 shapes.push_back(layout.shape(i));
                               }
                               return shapes;
                             })
      .def_property_readonly("sharing", &KvLayout::sharing, docs::kLayoutSharing)
      .def_property_readonly("latent", &KvLayout::latent, docs::kLayoutLatent)
      .def("layer", &layer_of, py::arg("layer"), "Where a layer's keys and values lie in a page.")
      .def_property_readonly("numbers", &KvLayout::numbers, docs::kLayoutNumbers)
      .def(
          "__eq__", [](const KvLayout& a, const KvLayout& b) { return a == b; }, py::is_operator())
      .def("__repr__",
           [](const KvLayout& layout) { return "<KvLayout " + layout.describe() + ">"; });
}

void bind_pool(py::module_& module) {
  py::class_<PagePool, std::shared_ptr<PagePool>>(module, "PagePool", docs::kPagePool)
      .def(py::init([](std::vector<KvLayout> layouts, std::int64_t arena_bytes,
                       std::int64_t sector_bytes, const std::string& device) {
             return std::make_shared<PagePool>(std::move(layouts), arena_bytes, arena_on(device),
                                               sector_bytes);
           }),
           py::arg("layouts"), py::arg("arena_bytes"), py::arg("sector_bytes") = 0,
           py::arg("device") = "cpu")
      .def_property_readonly(
          "device", [](const PagePool& pool) { return pool.arena().name(); },
          "Where the pages are, as \"cuda:0\".")
      .def_property_readonly("sector_bytes", &PagePool::sector_bytes)
      .def_property_readonly("num_sectors", &PagePool::num_sectors)
      .def_property_readonly("num_free_sectors", &PagePool::num_free_sectors)
      .def_static("default_sector_bytes", &PagePool::default_sector_bytes, py::arg("layouts"),
                  "Bytes of the sector that is chosen where none is named.")
      .def(
          "can_allocate",
          [](const PagePool& pool, const PageCounts& wanted) {
            if (static_cast<std::int32_t>(wanted.size()) != pool.num_models()) {
              throw py::value_error("wanted needs one number a model");
            }
            return pool.can_allocate(wanted);
          },
          py::arg("wanted"), "Whether so many pages of each model could be had together.")
      .def("layout", &PagePool::layout, py::arg("model"),
           py::return_value_policy::reference_internal, "KvLayout of a model.")
      .def("available", &PagePool::available, py::arg("model"),
           "Pages of a model that could be had now, if no other model took any.")
      .def("owned", &PagePool::owned, py::arg("model"), "Pages of a model in use.")
      .def("limit_sectors", &PagePool::limit_sectors, py::arg("count"),
           "Sectors that may be in use at a time, in [0, num_sectors].")
      .def("poison_freed_pages", &PagePool::poison_freed_pages, py::arg("byte"),
           "Fill pages that become free with this byte: for tests.")
      .def("check_invariants", &PagePool::check_invariants)
      .def_property_readonly(
          "memory",
          [](const py::object& self) {
            auto& pool = self.cast<PagePool&>();
            const std::string place = pool.arena().name();
            if (place != "cpu") {
              throw py::value_error("the arena is in the memory of " + place +
                                    "; gather_kv copies keys and values out of it");
            }
            const auto bytes = (pool.num_sectors() + 1) * pool.sector_bytes();
            auto* const begin = reinterpret_cast<std::uint8_t*>(pool.address(kNullPage));
            return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes), begin, self);
          },
          "The arena, uint8 [bytes]; writable. ValueError when it is on a device.");
}

void bind_batch(py::module_& module) {
  py::class_<RaggedBatch> batch(module, "RaggedBatch",
                                "Unseen tokens of B sequences, T in all, side by side.");
  batch.def_readonly("model", &RaggedBatch::model, "Index of the model.");
  def_column<&RaggedBatch::sequences>(batch, "sequences", "int32 [B].");
  def_column<&RaggedBatch::ids>(batch, "ids", "Unseen token ids of all sequences, int32 [T].");
  def_column<&RaggedBatch::positions>(batch, "positions", "Their positions, int32 [T].");
  def_column<&RaggedBatch::cu_seqlens>(batch, "cu_seqlens",
                                       "Where each sequence's tokens begin, int32 [B + 1].");
  def_column<&RaggedBatch::seq_lens>(batch, "seq_lens",
                                     "Keys that the last token sees, int32 [B].");
  def_column<&RaggedBatch::last_rows>(batch, "last_rows",
                                      "Index of each sequence's last token, int32 [B].");
  def_column<&RaggedBatch::slot_mapping>(
      batch, "slot_mapping", "Where keys and values go: page * page_size + place, int64 [T].");
  batch.def_property_readonly(
      "block_table",
      [](const py::object& self) {
        auto& value = self.cast<RaggedBatch&>();
        return column(value.block_table, self)
            .reshape({static_cast<py::ssize_t>(value.sequences.size()),
                      static_cast<py::ssize_t>(value.table_width)});
      },
      "Pages of each sequence in units of 256 bytes, int32 [B, pages], padded with 0.");
  batch.def(
      "padded_tables",
      [](const RaggedBatch& self) {
        PaddedTables tables = padded_tables(self);
        const auto rows = static_cast<py::ssize_t>(tables.seq_lens.size());
        return py::make_tuple(owned(std::move(tables.slot_mapping)),
                              owned(std::move(tables.block_table)).reshape({rows, py::ssize_t{-1}}),
                              owned(std::move(tables.cu_seqlens)),
                              owned(std::move(tables.seq_lens)));
      },
      docs::kPaddedTables);
}

// The tokens of a cache's sequences, in the ids of each model.
void bind_tokens(py::class_<KvCache>& binding) {
  binding
      .def(
          "append",
          [](KvCache& cache, std::int32_t model, std::int32_t sequence, const py::object& ids) {
            const IndexList list(ids.ptr(), "ids");
            cache.append(model, sequence, list.span());
          },
          py::arg("model"), py::arg("sequence"), py::arg("ids"), docs::kKvAppend)
      .def(
          "pending_spans",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return spans_as_bytes(cache.sequence(sequence).ledger.pending_spans(model));
          },
          py::arg("model"), py::arg("sequence"), docs::kPendingSpans)
      .def("resolve", &KvCache::resolve, py::arg("model"), py::arg("sequence"), py::arg("spans"),
           docs::kKvResolve)
      .def(
          "generated",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence).ledger.ids(model);
          },
          py::arg("model"), py::arg("sequence"),
          "Generated ids in a model's vocabulary, as far as they have been taken over.")
      .def(
          "length",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence).length(model);
          },
          py::arg("model"), py::arg("sequence"),
          "Tokens of a model, prompt included, as far as they have been taken over.")
      .def(
          "frontier",
          [](const KvCache& cache, std::int32_t sequence) {
            return cache.sequence(sequence).ledger.size();
          },
          py::arg("sequence"), "Number of tokens generated, by whichever model.")
      .def(
          "caught_up",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence).ledger.caught_up(model);
          },
          py::arg("model"), py::arg("sequence"),
          "Whether all that was generated is in the model's vocabulary by now.")
      .def(
          "retokenized",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence).ledger.retokenized(model);
          },
          py::arg("model"), py::arg("sequence"), "Tokens that resolve() has given the model.")
      .def(
          "excess",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence).caches.at(static_cast<std::size_t>(model)).excess;
          },
          py::arg("model"), py::arg("sequence"),
          "Tokens that a model computed and dropped because their text was tokenized again.");
}

}  // namespace

void bind_kv_cache(py::module_& module) {
  py::register_exception<OutOfPages>(module, "OutOfPages", PyExc_RuntimeError);
  bind_layout(module);
  bind_pool(module);
  bind_batch(module);
  py::class_<KvCache> binding(module, "KvCache", docs::kKvCache);
  bind_tokens(binding);
  binding
      .def(py::init([](std::variant<std::shared_ptr<PagePool>, Pools> pool,
                       std::int32_t max_sequences, std::shared_ptr<VocabularyMap> map) {
             return std::visit(
                 [&](auto& own) {
                   return std::make_unique<KvCache>(std::move(own), max_sequences, std::move(map));
                 },
                 pool);
           }),
           py::arg("pool"), py::arg("max_sequences"), py::arg("vocabulary_map") = py::none())
      .def("open", &KvCache::open, py::arg("prompts"), docs::kKvOpen)
      .def("close", &KvCache::close, py::arg("sequence"), "Ends a sequence and frees its pages.")
      .def("fork", &KvCache::fork, py::arg("sequence"), docs::kKvFork)
      .def("truncate", &KvCache::truncate, py::arg("sequence"), py::arg("generated"),
           docs::kKvTruncate)
      .def("forget", &KvCache::forget, py::arg("model"), py::arg("sequence"), py::arg("count"),
           docs::kKvForget)
      .def("cast_copy", &KvCache::cast_copy, py::arg("source"), py::arg("target"),
           py::arg("sequence"), docs::kKvCastCopy)
      .def(
          "prepare",
          [](KvCache& cache, std::int32_t model, const py::object& sequences,
             const py::object& ends) {
            const IndexList list(sequences.ptr(), "sequences");
            if (ends.is_none()) return cache.prepare(model, list.span());
            const IndexList stops(ends.ptr(), "ends");
            if (stops.span().empty() && !list.span().empty()) {
              throw py::value_error("ends must have an entry for each sequence, or be None");
            }
            return cache.prepare(model, list.span(), stops.span());
          },
          py::arg("model"), py::arg("sequences"), py::arg("ends") = py::none(), docs::kKvPrepare)
      .def("complete", &KvCache::complete, py::arg("batch"), docs::kKvComplete)
      .def("abandon", &KvCache::abandon, py::arg("batch"), docs::kKvAbandon)
      .def(
          "save",
          [](KvCache& cache, std::int32_t sequence) { return py::bytes(cache.save(sequence)); },
          py::arg("sequence"), docs::kKvSave)
      .def(
          "load",
          [](KvCache& cache, const py::bytes& saved) {
            return cache.load(static_cast<std::string_view>(saved));
          },
          py::arg("saved"), docs::kKvLoad)
      .def(
          "check_saved",
          [](const KvCache& cache, const py::bytes& saved) {
            return cache.check_saved(static_cast<std::string_view>(saved));
          },
          py::arg("saved"), docs::kKvCheckSaved)
      .def(
          "num_computed_tokens",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence)
                .caches.at(static_cast<std::size_t>(model))
                .num_computed_tokens;
          },
          py::arg("model"), py::arg("sequence"),
          "Tokens that a model has computed, prompt included.")
      .def(
          "pages",
          [](const KvCache& cache, std::int32_t model, std::int32_t sequence) {
            return cache.sequence(sequence).caches.at(static_cast<std::size_t>(model)).pages;
          },
          py::arg("model"), py::arg("sequence"), "Pages of a model, in units of 256 bytes.")
      .def_property_readonly("sequences", &KvCache::sequences, "Open sequences, ascending.")
      .def(
          "check_invariants", &KvCache::check_invariants,
          "Raises RuntimeError that names the first invariant of cache or pools that is violated.");
}

}  // namespace glimprouter::bindings
