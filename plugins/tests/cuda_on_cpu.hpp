// CUDA on the CPU: enough of its language and runtime to run the kernels of plugins/kernels/cuda unmodified, for tests.
//
// The threads of a block are fibers of one host thread. A fiber runs until it waits at a barrier or a collective of its
// warp, so whatever lies between two of those happens at once; which of the ready threads goes on is decided by a seed
// (on_cpu::order): 0 = in their order, odd = any, even = always the one highest in a shuffled ranking. Blocks run one after
// another, shuffled too. A kernel that lacks a barrier gives other results under another seed.
//
// Found and reported, as an error of the launch and a sentence in on_cpu::fault(): threads that wait for each other for
// ever, threads that meet at different barriers, warp collectives with masks that do not fit, lanes read that take no part,
// and launches that a GPU would refuse. Dynamic shared memory begins as 0xfb bytes, a NaN and a negative integer.
// What it does not show: races between threads that run at the same time, and the cost of anything.
#pragma once

#include "cuda_on_cpu_fibers.hpp"
#include "cuda_on_cpu_grid.hpp"
#include "cuda_on_cpu_math.hpp"
#include "cuda_on_cpu_warp.hpp"
