// check(): throws std::invalid_argument with a message of one sentence. In Python it is a ValueError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastlm {

template <typename... Parts>
void check(bool holds, const Parts&... sentence) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << sentence);
  throw std::invalid_argument(text.str());
}

}  // namespace fastlm
