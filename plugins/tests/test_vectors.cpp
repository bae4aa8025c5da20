// Vectors in their portable form: every float16 number there and back, and the order in which lanes are added.
#include <cmath>
#include <cstring>

#define LATENTCOT_ISA portable
#include "../kernels/vectors.hpp"
#include "check.hpp"

using namespace latentcot::portable;

namespace {

// Every number, finite or not, and none for a NaN, which may change its bits but stays one.
void widens_and_narrows() {
  for (int first = 0; first < 1 << 16; first += 16) {
    std::uint16_t halves[16], back[16];
    float wide[16];
    for (int i = 0; i < 16; ++i) halves[i] = std::uint16_t(first + i);
    for (int i = 0; i < 16; i += kLanes) store(wide + i, load(halves + i));
    narrow(wide, back, 16);
    for (int i = 0; i < 16; ++i) {
      _Float16 half;
      std::memcpy(&half, &halves[i], 2);
      const float expected = float(half);
      const bool nothing = std::isnan(expected);
      CHECK(nothing ? std::isnan(wide[i]) : std::memcmp(&wide[i], &expected, 4) == 0, "%#x widens to %g", halves[i], wide[i]);
      if (nothing) continue;
      // an endless one is stored as the largest finite one
      const std::uint16_t kept = std::isinf(expected) ? std::uint16_t((halves[i] & 0x8000) | 0x7bff) : halves[i];
      CHECK(back[i] == kept, "%#x comes back as %#x", halves[i], back[i]);
    }
  }
}

void adds_lanes_in_order() {
  // sums whose order shows: 2^24 + 1 is 2^24 in float32
  const Vector v{0x1p24f, -0x1p24f, 1.f, 1.f};
  const Vector folded = fold_four(v, -v, Vector{}, v * 2.f);
  const float expected[4] = {(v[0] + v[2]) + (v[1] + v[3]), -((v[0] + v[2]) + (v[1] + v[3])), 0.f,
                             2.f * ((v[0] + v[2]) + (v[1] + v[3]))};
  for (int i = 0; i < 4; ++i) CHECK(folded[i] == expected[i], "lane %d is %g", i, folded[i]);
  CHECK(fold_groups(&folded)[3] == folded[3], "groups of one");
}

}  // namespace

int main() {
  widens_and_narrows();
  adds_lanes_in_order();
  std::printf(failures ? "FAILED: %d\n" : "passed\n", failures);
  return failures != 0;
}
