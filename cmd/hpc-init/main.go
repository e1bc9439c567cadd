// Command hpc-init is PID 1 of the PC's initramfs.
package main

import "portcullis/rootfs/hpcinit"

func main() { hpcinit.Run() }
