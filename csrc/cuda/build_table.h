// From a plan to the tables of its launches.
#pragma once

#include <vector>

#include "project.h"
#include "table.h"

namespace projkern::cuda {

// Rows of the strips of a matrix that is projected with these row groups.
int32_t strip_rows(int64_t rows, const std::vector<int64_t>& row_groups);

std::vector<Table> build_tables(const Plan& plan, const Forward& call);
std::vector<Table> build_tables(const Plan& plan, const Backward& call);

}  // namespace projkern::cuda
