// The tokens of a ledger as bytes, also inside what the KV cache saves.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/saved_bytes.hpp"
#include "glimprouter/token_ledger.hpp"

namespace glimprouter {

// How many bytes append_tokens() adds.
std::int64_t bytes_of_tokens(const TokenLedger& ledger);
void append_tokens(std::string& bytes, const TokenLedger& ledger);
// Throws std::invalid_argument for bytes of another map, or that no ledger can have.
TokenLedger read_tokens(BytesReader& reader, std::shared_ptr<const VocabularyMap> map);

}  // namespace glimprouter
