// CUDA on the CPU: collectives of a warp, and atomics. See cuda_on_cpu.hpp.
//
// Every lane brings an offer and waits until all living lanes of its mask have brought one of the same kind and mask; then
// the last of them computes what each gets. Lanes that have ended, or that a small block lacks, are not waited for.
#pragma once

#include <bit>
#include <type_traits>

#include "cuda_on_cpu_fibers.hpp"

namespace latentcot::cuda::on_cpu {

enum Kind : int { kSync, kBallot, kAny, kAll, kIndex, kUp, kDown, kXor, kCustom };

// A collective of our own, the tensor core's: gets the offers of lanes 0 to 31, null where a lane takes no part. `value` may
// be the address of what a lane brings and takes: every lane keeps its stack.
using Exchange = void (*)(Offer* const* lanes);

// Where lane `lane` reads in a shuffle, itself where the source lies outside of its segment (PTX ISA, shfl.sync).
inline int source_lane(const Offer& offer, int lane) {
  const int segment = lane & ~(offer.width - 1), last = segment + offer.width - 1;
  switch (offer.kind) {
    case kUp: return lane - offer.source < segment ? lane : lane - offer.source;
    case kDown: return lane + offer.source > last ? lane : lane + offer.source;
    case kXor: return (lane ^ offer.source) > last ? lane : lane ^ offer.source;
    default: return segment | (offer.source & (offer.width - 1));
  }
}

// Computes a collective whose lanes are all there. `lanes`: those of the mask that live.
inline void exchange(int first, unsigned lanes) {
  Machine& m = machine();
  Offer* offers[kWarpLanes] = {};
  unsigned votes = 0;
  for (int lane = 0; lane < kWarpLanes; ++lane)
    if (lanes >> lane & 1) {
      offers[lane] = &m.fibers[first + lane]->offer;
      votes |= unsigned(offers[lane]->value != 0) << lane;
    }
  const Offer& any = *offers[std::countr_zero(lanes)];
  const int kind = any.kind;
  if (kind == kCustom) return any.custom(offers);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!offers[lane]) continue;
    Offer& offer = *offers[lane];
    offer.result = kind == kBallot ? votes : kind == kAny ? votes != 0 : votes == lanes;
    if (kind < kIndex) continue;
    const int from = source_lane(offer, lane);
    if (offers[from])
      offer.result = offers[from]->value;
    else
      fail(first + lane, m.fibers[first + lane]->place, "it reads lane " + std::to_string(from) + ", which takes no part.");
  }
}

// Lets the lanes that wait with lane `thread` go on if nobody is missing.
inline void try_warp(int thread) {
  Machine& m = machine();
  const int first = thread / kWarpLanes * kWarpLanes;
  const Fiber& fiber = *m.fibers[thread];
  const unsigned mask = fiber.offer.mask;
  unsigned there = 0;
  for (int lane = 0; lane < kWarpLanes && first + lane < m.threads; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& other = *m.fibers[first + lane];
    if (other.wait == Wait::kEnd) continue;
    if (other.wait != Wait::kWarp) return;
    // another mask may be a collective of fewer lanes, after which that lane comes here
    if (other.offer.mask != mask) return;
    if (other.offer.kind != fiber.offer.kind || other.offer.custom != fiber.offer.custom)
      return fail(thread, fiber.place, "lanes of one mask are in different collectives, here and in line " +
                                         std::to_string(other.place.line()) + ".");
    there |= 1u << lane;
  }
  exchange(first, there);
  for (int lane = 0; lane < kWarpLanes; ++lane)
    if (there >> lane & 1) wake(first + lane);
}

// What `value` becomes in a collective; `custom` is that of the kind kCustom.
inline std::uint64_t collective(int kind, unsigned mask, std::uint64_t value, int source, int width, std::source_location at,
                                Exchange custom = nullptr) {
  Machine& m = machine();
  const int thread = m.current;
  Fiber& fiber = *m.fibers[thread];
  fiber.offer = {kind, width, source, mask, value, 0, custom};
  fiber.place = at;
  fiber.wait = Wait::kWarp;
  if (!(mask >> (thread % kWarpLanes) & 1))
    fail(thread, at, "its own lane is not in the mask of the collective.");
  else if (width < 1 || width > kWarpLanes || !std::has_single_bit(unsigned(width)))
    fail(thread, at, "the width of a shuffle is " + std::to_string(width) + ", but must be a power of 2 up to 32.");
  else
    try_warp(thread);
  leave();
  return fiber.offer.result;
}

inline void warp_end(int thread) {
  Machine& m = machine();
  const int first = thread / kWarpLanes * kWarpLanes;
  for (int other = first; other < first + kWarpLanes && other < m.threads; ++other)
    if (m.fibers[other]->wait == Wait::kWarp && (m.fibers[other]->offer.mask >> (thread - first) & 1))
      return try_warp(other);
}

template <class T>
T shuffle(int kind, unsigned mask, T value, int source, int width, std::source_location at) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = collective(kind, mask, bits, source, width, at);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// An atomic lets another thread go first now and then, so that what depends on their order shows.
template <class T, class Change>
T change(T* at, Change to) {
  Machine& m = machine();
  if (m.seed != 0 && m.random() % 4 == 0) {
    wake(m.current);
    leave();
  }
  const T before = *at;
  *at = to(before);
  return before;
}

template <class T>
constexpr bool kAtomic = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

}  // namespace latentcot::cuda::on_cpu

#define LATENTCOT_WHERE std::source_location at = std::source_location::current()

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, LATENTCOT_WHERE) {
  return latentcot::cuda::on_cpu::shuffle(latentcot::cuda::on_cpu::kIndex, mask, value, source, width, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, LATENTCOT_WHERE) {
  return latentcot::cuda::on_cpu::shuffle(latentcot::cuda::on_cpu::kUp, mask, value, int(delta & 31), width, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, LATENTCOT_WHERE) {
  return latentcot::cuda::on_cpu::shuffle(latentcot::cuda::on_cpu::kDown, mask, value, int(delta & 31), width, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, LATENTCOT_WHERE) {
  return latentcot::cuda::on_cpu::shuffle(latentcot::cuda::on_cpu::kXor, mask, value, lanes & 31, width, at);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, LATENTCOT_WHERE) {
  latentcot::cuda::on_cpu::collective(latentcot::cuda::on_cpu::kSync, mask, 0, 0, 32, at);
}
inline unsigned __ballot_sync(unsigned mask, int vote, LATENTCOT_WHERE) {
  return unsigned(latentcot::cuda::on_cpu::collective(latentcot::cuda::on_cpu::kBallot, mask, vote != 0, 0, 32, at));
}
inline int __any_sync(unsigned mask, int vote, LATENTCOT_WHERE) {
  return int(latentcot::cuda::on_cpu::collective(latentcot::cuda::on_cpu::kAny, mask, vote != 0, 0, 32, at));
}
inline int __all_sync(unsigned mask, int vote, LATENTCOT_WHERE) {
  return int(latentcot::cuda::on_cpu::collective(latentcot::cuda::on_cpu::kAll, mask, vote != 0, 0, 32, at));
}

// As CUDA: add, min, max, exchange and compare-and-swap of int, unsigned and unsigned long long; add and exchange of float.
template <class T>
  requires(latentcot::cuda::on_cpu::kAtomic<T> || std::is_same_v<T, float>)
T atomicAdd(T* at, std::type_identity_t<T> value) {
  // unsigned: CUDA's integers wrap around
  return latentcot::cuda::on_cpu::change(at, [&](T old) {
    if constexpr (std::is_same_v<T, int>) return int(unsigned(old) + unsigned(value));
    else return T(old + value);
  });
}
template <class T>
  requires latentcot::cuda::on_cpu::kAtomic<T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return latentcot::cuda::on_cpu::change(at, [&](T old) { return old < value ? value : old; });
}
template <class T>
  requires latentcot::cuda::on_cpu::kAtomic<T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return latentcot::cuda::on_cpu::change(at, [&](T old) { return value < old ? value : old; });
}
template <class T>
  requires latentcot::cuda::on_cpu::kAtomic<T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return latentcot::cuda::on_cpu::change(at, [&](T old) { return T(old | value); });
}
template <class T>
  requires(latentcot::cuda::on_cpu::kAtomic<T> || std::is_same_v<T, float>)
T atomicExch(T* at, std::type_identity_t<T> value) {
  return latentcot::cuda::on_cpu::change(at, [&](T) { return value; });
}
template <class T>
  requires latentcot::cuda::on_cpu::kAtomic<T>
T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return latentcot::cuda::on_cpu::change(at, [&](T old) { return old == compare ? value : old; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

#undef LATENTCOT_WHERE
