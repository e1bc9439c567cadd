// Command pi-init is PID 1 of the Pi's initramfs.
package main

import "portcullis/rootfs/piinit"

func main() { piinit.Run() }
