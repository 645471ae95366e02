SUMMARY = "A Cloudnova node for the Raspberry Pi 5"
DESCRIPTION = "Agent, the runtimes in CNOVA_RUNTIMES, two slots with dm-verity, the firmware's tryboot, RAUC."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "Apache-2.0"

inherit cnova_image

COMPATIBLE_MACHINE = "^raspberrypi5$"

# The Pi's device tree switches the controller of memory off, with which the budget is enforced.
CNOVA_KERNEL_ARGUMENTS:append = " cgroup_enable=memory"

# An accelerator on the board's connector: with the layer meta-hailo, MACHINE_FEATURES:append = " hailo".
CNOVA_IMAGE_EXTRA:append = " ${@bb.utils.contains('MACHINE_FEATURES', 'hailo', 'packagegroup-cnova-hailo', '', d)}"
