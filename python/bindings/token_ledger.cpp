// VocabularyMap and TokenLedger.
#include "glimprouter/token_ledger.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "index_list.hpp"
#include "kv_cache_docs.hpp"
#include "tensor_access.hpp"
#include "token_bytes.hpp"
#include "token_ledger_docs.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

std::shared_ptr<VocabularyMap> make_map(const std::vector<py::sequence>& vocabularies,
                                        const std::vector<std::vector<std::int32_t>>& roles,
                                        std::vector<std::vector<std::int32_t>> secondary_ids) {
  secondary_ids.resize(std::max(secondary_ids.size(), vocabularies.size()));
  if (secondary_ids.size() != vocabularies.size()) {
    throw py::value_error("secondary_ids needs one list a vocabulary");
  }
  std::vector<VocabularyMap::Vocabulary> tables;
  for (std::size_t i = 0; i < vocabularies.size(); ++i) {
    tables.push_back({read_token_bytes(vocabularies[i]), std::move(secondary_ids[i])});
  }
  return std::make_shared<VocabularyMap>(std::move(tables), roles);
}

void check_model(const VocabularyMap& map, std::int32_t model) {
  if (model < 0 || model >= map.num_models()) {
    throw py::value_error("model must lie in [0, " + std::to_string(map.num_models()) + "), got " +
                          std::to_string(model));
  }
}

void check_id(const VocabularyMap& map, std::int32_t model, std::int32_t id) {
  check_model(map, model);
  if (id < 0 || id >= map.size(model)) {
    throw py::value_error("id must lie in [0, " + std::to_string(map.size(model)) + "), got " +
                          std::to_string(id));
  }
}

py::object image(const VocabularyMap& map, std::int32_t from, std::int32_t to, std::int32_t id) {
  check_id(map, from, id);
  check_model(map, to);
  const std::int32_t found = map.image(from, to, id);
  return found == VocabularyMap::kNone ? py::object(py::none()) : py::int_(found);
}

}  // namespace

void bind_token_ledger(py::module_& module) {
  py::class_<VocabularyMap, std::shared_ptr<VocabularyMap>>(module, "VocabularyMap",
                                                            docs::kVocabularyMap)
      .def(py::init(&make_map), py::arg("vocabularies"), py::arg("roles"),
           py::arg("secondary_ids") = py::list())
      .def_property_readonly("num_models", &VocabularyMap::num_models)
      .def("image", &image, py::arg("source"), py::arg("target"), py::arg("id"), docs::kImage)
      .def(
          "expressible",
          [](const VocabularyMap& map, std::int32_t from, std::int32_t to, std::int32_t id) {
            check_id(map, from, id);
            check_model(map, to);
            return map.expressible(from, to, id);
          },
          py::arg("source"), py::arg("target"), py::arg("id"), docs::kExpressible)
      .def(
          "writes",
          [](const VocabularyMap& map, std::int32_t model, const std::vector<std::int32_t>& ids,
             const py::bytes& bytes) {
            check_model(map, model);
            return map.writes(model, ids, static_cast<std::string_view>(bytes));
          },
          py::arg("model"), py::arg("ids"), py::arg("text"), docs::kWrites)
      .def(
          "segment",
          [](const VocabularyMap& map, std::int32_t model, const py::bytes& bytes) {
            check_model(map, model);
            return map.segment(model, static_cast<std::string_view>(bytes));
          },
          py::arg("model"), py::arg("text"), docs::kSegment);
  py::class_<TokenLedger>(module, "TokenLedger", docs::kTokenLedger)
      .def(py::init([](std::shared_ptr<VocabularyMap> map) {
             return std::make_unique<TokenLedger>(std::move(map));
           }),
           py::arg("vocabulary_map") = py::none())
      .def(
          "append",
          [](TokenLedger& ledger, std::int32_t model, const py::object& ids) {
            const IndexList list(ids.ptr(), "ids");
            ledger.append(model, list.span());
          },
          py::arg("model"), py::arg("ids"), docs::kLedgerAppend)
      .def(
          "pending_spans",
          [](const TokenLedger& ledger, std::int32_t model) {
            return spans_as_bytes(ledger.pending_spans(model));
          },
          py::arg("model"), docs::kPendingSpans)
      .def("resolve", &TokenLedger::resolve, py::arg("model"), py::arg("spans"),
           docs::kLedgerResolve)
      .def(
          "truncate",
          [](TokenLedger& ledger, std::int32_t size) {
            std::vector<std::pair<std::int32_t, std::int32_t>> cuts;
            for (const auto& cut : ledger.truncate(size)) cuts.emplace_back(cut.kept, cut.spoiled);
            return cuts;
          },
          py::arg("size"), docs::kLedgerTruncate)
      .def(
          "ids",
          [](const TokenLedger& ledger, std::int32_t model, std::int32_t start) {
            const std::vector<std::int32_t>& ids = ledger.ids(model);
            if (start < 0 || static_cast<std::size_t>(start) > ids.size()) {
              throw py::value_error("start must lie in [0, " + std::to_string(ids.size()) +
                                    "], got " + std::to_string(start));
            }
            return std::vector<std::int32_t>(ids.begin() + start, ids.end());
          },
          py::arg("model"), py::arg("start") = 0,
          "Ids in a model's vocabulary, as far as they have been taken over.")
      .def(
          "count",
          [](const TokenLedger& ledger, std::int32_t model) { return ledger.ids(model).size(); },
          py::arg("model"), "Number of ids().")
      .def("caught_up", &TokenLedger::caught_up, py::arg("model"),
           "Whether all that was written is in the model's vocabulary by now.")
      .def("retokenized", &TokenLedger::retokenized, py::arg("model"),
           "Tokens that resolve() has given the model.")
      .def(
          "save", [](const TokenLedger& ledger) { return py::bytes(ledger.save()); },
          docs::kLedgerSave)
      .def_static(
          "load",
          [](const py::bytes& saved, std::shared_ptr<VocabularyMap> map) {
            return TokenLedger::load(std::move(map), static_cast<std::string_view>(saved));
          },
          py::arg("saved"), py::arg("vocabulary_map") = py::none(), docs::kLedgerLoad)
      .def(
          "copy", [](const TokenLedger& ledger) { return TokenLedger(ledger); },
          "An independent copy.")
      .def("__len__", &TokenLedger::size);
}

}  // namespace glimprouter::bindings
