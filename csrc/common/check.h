// check(): throws an error of one sentence, which Python raises as a ValueError.
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
