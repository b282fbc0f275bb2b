// Sizes and raw pointers in, nothing of any tensor library: one build serves every version of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../python_types.h"
#include "project.h"
#include "targets.h"
#include "threads.h"

namespace py = pybind11;

namespace projkern {
namespace {

const cpu::Kernels* kernels = nullptr;  // chosen when the module is loaded

DType served(const std::string& name) {
    if (name == "float16")
        throw std::invalid_argument("the CPU kernels serve float32 and bfloat16; the storage type was float16");
    return dtype(name);
}

class CpuPlan {
  public:
    CpuPlan(const std::vector<WeightRow>& weights, const std::vector<MatrixRow>& matrices, int64_t p_width,
            int64_t q_width)
        : plan_(make_plan(weights, matrices, p_width, q_width)), partition_(plan_) {}

    void project_forward(const std::vector<Address>& weights, const std::string& weight_dtype, Address p, Address q,
                         const std::vector<Address>& outputs, const std::string& output_dtype, int64_t batch,
                         int threads) const {
        const cpu::Forward call{pointers<const void>(weights, plan_.weights.size(), "weights"),
                                served(weight_dtype),
                                pointer<const float>(p),
                                pointer<const float>(q),
                                pointers<void>(outputs, plan_.matrices.size(), "outputs"),
                                served(output_dtype),
                                batch,
                                threads};
        py::gil_scoped_release release;
        kernels->project_forward(plan_, partition_, call);
    }

    void project_backward(const std::vector<Address>& weights, const std::string& weight_dtype, Address p, Address q,
                          const std::vector<Address>& grads, const std::string& grad_dtype,
                          const std::vector<Address>& d_weights, Address dp, Address dq, int64_t batch,
                          int threads) const {
        const cpu::Backward call{pointers<const void>(weights, plan_.weights.size(), "weights"),
                                 served(weight_dtype),
                                 pointer<const float>(p),
                                 pointer<const float>(q),
                                 pointers<const void>(grads, plan_.matrices.size(), "grads"),
                                 served(grad_dtype),
                                 pointers<void>(d_weights, d_weights.empty() ? 0 : plan_.weights.size(), "d_weights"),
                                 pointer<float>(dp),
                                 pointer<float>(dq),
                                 batch,
                                 threads};
        py::gil_scoped_release release;
        kernels->project_backward(plan_, partition_, call);
    }

  private:
    Plan plan_;
    cpu::Partition partition_;
};

py::dict build_info() {
    py::dict info;
    info["compiler"] = PROJKERN_COMPILER;
    info["flags"] = kernels->flags;
    info["targets"] = cpu::target_names();
    info["target"] = kernels->target;
    info["float32_lanes"] = kernels->float32_lanes;
    info["version"] = PROJKERN_VERSION;
    info["revision"] = PROJKERN_REVISION;
    return info;
}

}  // namespace
}  // namespace projkern

PYBIND11_MODULE(_cpu, module) {
    using namespace projkern;
    try {
        kernels = &cpu::choose_target(std::getenv("PROJKERN_INSTRUCTION_SET"));
    } catch (const std::runtime_error& error) {
        throw py::import_error(error.what());
    }

    py::class_<CpuPlan>(module, "Plan")
        .def(py::init<const std::vector<WeightRow>&, const std::vector<MatrixRow>&, int64_t, int64_t>(),
             py::arg("weights"), py::arg("matrices"), py::arg("p_width"), py::arg("q_width"))
        .def("project_forward", &CpuPlan::project_forward, py::arg("weights"), py::arg("weight_dtype"), py::arg("p"),
             py::arg("q"), py::arg("outputs"), py::arg("output_dtype"), py::arg("batch"), py::arg("threads"))
        .def("project_backward", &CpuPlan::project_backward, py::arg("weights"), py::arg("weight_dtype"), py::arg("p"),
             py::arg("q"), py::arg("grads"), py::arg("grad_dtype"), py::arg("d_weights"), py::arg("dp"), py::arg("dq"),
             py::arg("batch"), py::arg("threads"));

    module.def(
        "use_openmp", [](Address parallel) { cpu::use_openmp(reinterpret_cast<cpu::GompParallel>(parallel)); },
        py::arg("gomp_parallel"));
    module.def("build_info", &build_info);
    module.attr("interface") = kInterface;
}
