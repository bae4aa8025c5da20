// AddNorm and GatedUnit of every instruction set against plain loops in double, and their bits in other company.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../kernels/kernel_table.hpp"
#include "check.hpp"

using namespace latentcot;

namespace {

std::vector<float> normal(std::mt19937& random, std::size_t count, float size) {
  std::normal_distribution<float> draw(0.f, size);
  std::vector<float> made(count);
  for (float& each : made) each = draw(random);
  return made;
}

bool close(double found, double wanted, double relative) {
  return std::abs(found - wanted) <= relative * std::abs(wanted) + 1e-30;
}

void norms(const KernelTable& kernels, std::mt19937& random, std::int64_t rows, std::int64_t width) {
  const auto x = normal(random, std::size_t(rows * width), 3.f), y = normal(random, x.size(), 1.f);
  const auto weight = normal(random, std::size_t(width), 1.f);
  // exactly as long as the contract says, so that the sanitizer sees a step too far
  std::vector<float> normed(x.size()), total(x.size()), one(std::size_t(width), 0.f), sum(one);
  AddNormCall call{x.data(), y.data(), weight.data(), normed.data(), total.data(), rows, width, 1e-5f};
  kernels.add_norm(call, 0, rows / 2);
  kernels.add_norm(call, rows / 2, rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::size_t at = std::size_t(row * width);
    double squares = 0;
    for (std::size_t i = at; i < at + std::size_t(width); ++i) {
      CHECK(total[i] == x[i] + y[i], "%s row %d", kernels.name, int(row));
      squares += double(total[i]) * total[i];
    }
    const double scale = 1 / std::sqrt(squares / double(width) + double(1e-5f));
    for (std::size_t i = 0; i < std::size_t(width); ++i)
      CHECK(close(normed[at + i], total[at + i] * scale * weight[i], 2e-6), "%s width %d", kernels.name, int(width));
    AddNormCall alone{x.data() + at, y.data() + at, weight.data(), one.data(), sum.data(), 1, width, 1e-5f};
    kernels.add_norm(alone, 0, 1);
    CHECK(!std::memcmp(one.data(), normed.data() + at, std::size_t(width) * 4), "%s row %d", kernels.name, int(row));
  }
}

void units(const KernelTable& kernels, std::mt19937& random, std::int64_t rows, std::int64_t width) {
  const auto gate_up = normal(random, std::size_t(2 * rows * width), 12.f);
  std::vector<float> out(std::size_t(rows * width)), one(std::size_t(width), 0.f);
  const GatedUnitCall call{gate_up.data(), out.data(), rows, width};
  kernels.gated_unit(call, 0, rows / 2);
  kernels.gated_unit(call, rows / 2, rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up.data() + 2 * row * width;
    for (std::int64_t i = 0; i < width; ++i) {
      const double wanted = gate[i] / (1 + std::exp(-double(gate[i]))) * gate[width + i];
      CHECK(close(out[std::size_t(row * width + i)], wanted, 1e-6), "%s gate %g", kernels.name, double(gate[i]));
    }
    const GatedUnitCall alone{gate, one.data(), 1, width};
    kernels.gated_unit(alone, 0, 1);
    CHECK(!std::memcmp(one.data(), out.data() + row * width, std::size_t(width) * 4), "%s row %d", kernels.name,
          int(row));
  }
}

// At every place of a vector and behind its end: what overflows, what underflows, what is no number.
void ends(const KernelTable& kernels) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t width = 1; width < 40; ++width)
    for (std::int64_t at = 0; at < width; ++at) {
      const auto gated = [&](float gate) {
        std::vector<float> gate_up(std::size_t(2 * width), 1.f), out(std::size_t(width), 0.f);
        gate_up[std::size_t(at)] = gate;
        kernels.gated_unit({gate_up.data(), out.data(), 1, width}, 0, 1);
        return out[std::size_t(at)];
      };
      CHECK(gated(inf) == inf && gated(3e38f) == 3e38f && gated(100.f) == 100.f, "%s", kernels.name);
      CHECK(std::isnan(gated(nan)) && std::isnan(gated(-inf)), "%s", kernels.name);
      CHECK(std::abs(gated(-3e38f)) <= 1e-30f && gated(-88.f) <= 0 && gated(0.f) == 0, "%s", kernels.name);
    }
}

}  // namespace

int main() {
  std::mt19937 random(5);
  int ran = 0;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    const KernelTable* kernels = kernels_named(name);
    if (!kernels) {
      std::printf("%s: not here\n", name);
      continue;
    }
    ++ran;
    for (const int width : {1, 3, 4, 8, 15, 16, 17, 63, 64, 65, 130, 576}) {
      norms(*kernels, random, 3, width);
      units(*kernels, random, 3, width);
    }
    ends(*kernels);
  }
  CHECK(ran > 0, "no kernels at all");
  std::printf(failures ? "FAILED: %d\n" : "passed\n", failures);
  return failures != 0;
}
