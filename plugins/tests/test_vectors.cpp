// Vectors in their portable form: every float16 and bfloat16 number there and back, and the order in which lanes are added.
#include <cmath>
#include <cstring>
#include <initializer_list>

#define LATENTCOT_ISA portable
#include "../kernels/vectors.hpp"
#include "check.hpp"

using namespace latentcot::portable;

namespace {

// Every number, finite or not, and none for a NaN, which may change its bits but stays one.
void widens_and_narrows() {
  for (int first = 0; first < 1 << 16; first += 16) {
    Float16 halves[16], back[16];
    float wide[16];
    for (int i = 0; i < 16; ++i) halves[i].bits = std::uint16_t(first + i);
    for (int i = 0; i < 16; i += kLanes) store(wide + i, load(halves + i));
    narrow(wide, back, 16);
    for (int i = 0; i < 16; ++i) {
      _Float16 half;
      std::memcpy(&half, &halves[i], 2);
      const float expected = float(half);
      const bool nothing = std::isnan(expected);
      CHECK(nothing ? std::isnan(wide[i]) : std::memcmp(&wide[i], &expected, 4) == 0, "%#x widens to %g", halves[i].bits,
            wide[i]);
      if (nothing) continue;
      // an endless one is stored as the largest finite one
      const std::uint16_t kept = std::isinf(expected) ? std::uint16_t((halves[i].bits & 0x8000) | 0x7bff) : halves[i].bits;
      CHECK(back[i].bits == kept, "%#x comes back as %#x", halves[i].bits, back[i].bits);
    }
  }
}

// The same of bfloat16; and what lies between two of them goes to the nearer, of two equally near to the even one.
void rounds_to_bfloat16() {
  for (int first = 0; first < 1 << 16; first += 16) {
    Bfloat16 given[16], back[16];
    float wide[16];
    for (int i = 0; i < 16; ++i) given[i].bits = std::uint16_t(first + i);
    for (int i = 0; i < 16; i += kLanes) store(wide + i, load(given + i));
    for (const int between : {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff}) {
      float at[16];
      for (int i = 0; i < 16; ++i) {
        const std::uint32_t bits = std::uint32_t(first + i) << 16 | std::uint32_t(between);
        std::memcpy(at + i, &bits, 4);
      }
      narrow(at, back, 16);
      for (int i = 0; i < 16; ++i) {
        const bool nothing = std::isnan(at[i]), odd = (first + i) & 1;
        const int wanted = first + i + (between > 0x8000 || (between == 0x8000 && odd));
        if (between == 0 && !nothing) CHECK(std::memcmp(wide + i, at + i, 4) == 0, "%#x widens to %g", first + i, wide[i]);
        CHECK(nothing ? (back[i].bits & 0x7fff) > 0x7f80 : back[i].bits == wanted, "%g becomes %#x", at[i], back[i].bits);
      }
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
  rounds_to_bfloat16();
  adds_lanes_in_order();
  std::printf(failures ? "FAILED: %d\n" : "passed\n", failures);
  return failures != 0;
}
