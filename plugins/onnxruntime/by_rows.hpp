// Rows that need nothing of each other, shared out over threads.
#pragma once

#include "call.hpp"

namespace latentcot::ort {

// `kernel(work, first, end)` for all of `rows`, in tasks of at least `task_floats` results: below, waking another thread
// costs more than it saves.
template <class Work>
inline void by_rows(Call& call, const Work& work, void (*kernel)(const Work&, std::int64_t, std::int64_t),
                    std::int64_t rows, std::int64_t width, std::int64_t task_floats) {
  struct Tasks {
    const Work& work;
    void (*kernel)(const Work&, std::int64_t, std::int64_t);
    std::int64_t rows, rows_per_task;

    static void task(void* self, std::size_t index) {
      const Tasks& all = *static_cast<const Tasks*>(self);
      const std::int64_t first = static_cast<std::int64_t>(index) * all.rows_per_task;
      all.kernel(all.work, first, first + all.rows_per_task < all.rows ? first + all.rows_per_task : all.rows);
    }
  };
  if (rows == 0) return;
  const std::int64_t rows_per_task = task_floats / (width + 1) + 1;
  Tasks tasks{work, kernel, rows, rows_per_task};
  const Parallel parallel = call.parallel();
  const std::int64_t count = (rows + rows_per_task - 1) / rows_per_task;
  parallel.run(parallel.context, static_cast<std::size_t>(count), &Tasks::task, &tasks);
}

}  // namespace latentcot::ort
