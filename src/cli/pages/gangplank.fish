# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_gangplank_global_optspecs
    string join \n color= h/help V/version
end

function __fish_gangplank_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_gangplank_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_gangplank_using_subcommand
    set -l cmd (__fish_gangplank_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c gangplank -n "__fish_gangplank_needs_command" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_needs_command" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_needs_command" -s V -l version -d 'Print version'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "status" -d 'Show each network\'s bridge, addresses, masquerading and pods'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "doctor" -d 'Look for what is wrong with this node\'s pod networks: cause, evidence, remedy'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "reconcile" -d 'Put back what a firewall reload or a network manager removed from living pods'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "routes" -d 'Make this node\'s routes to the other nodes\' pod ranges match a list of nodes on stdin'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "conf" -d 'Print a CNI configuration for a subnet, or for a Kubernetes Node object on stdin'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "install" -d 'Put the plugins into a CNI bin directory; what was there is kept as NAME.orig'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "uninstall" -d 'Take the plugins out of a CNI bin directory and bring NAME.orig back'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "completions" -d 'Print completions for a shell'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "man" -d 'Print the manual page, in roff'
complete -c gangplank -n "__fish_gangplank_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c gangplank -n "__fish_gangplank_using_subcommand status" -l conf-dir -d 'The directory of network configurations' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand status" -l cache-dir -d 'The directory in which runtimes keep the results of ADD; can be repeated. The second one is kubelet\'s' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand status" -l data-dir -d 'The directory of leases, unless a configuration has a dataDir' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand status" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand status" -l json -d 'Print JSON'
complete -c gangplank -n "__fish_gangplank_using_subcommand status" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l cni-path -d 'Where plugins are, separated by colons' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l conf-dir -d 'The directory of network configurations' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l cache-dir -d 'The directory in which runtimes keep the results of ADD; can be repeated. The second one is kubelet\'s' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l data-dir -d 'The directory of leases, unless a configuration has a dataDir' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l fix -d 'Repair what is safe to repair'
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -l json -d 'Print JSON'
complete -c gangplank -n "__fish_gangplank_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -l conf-dir -d 'The directory of network configurations' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -l cache-dir -d 'The directory in which runtimes keep the results of ADD; can be repeated. The second one is kubelet\'s' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -l data-dir -d 'The directory of leases, unless a configuration has a dataDir' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -s n -l dry-run -d 'Only say what would be done'
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -l json -d 'Print JSON'
complete -c gangplank -n "__fish_gangplank_using_subcommand reconcile" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand routes" -l node -d 'The name of this node; otherwise it is the one with an address of this machine' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand routes" -l metric -d 'The metric of the routes; the kernel\'s default when 0' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand routes" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand routes" -s n -l dry-run -d 'Only show what would be done'
complete -c gangplank -n "__fish_gangplank_using_subcommand routes" -l json -d 'Print JSON'
complete -c gangplank -n "__fish_gangplank_using_subcommand routes" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l name -d 'The network\'s name' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l bridge -d 'The bridge\'s name' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l mtu -d 'MTU of the bridge and the pods in bytes; otherwise that of the uplink' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l overhead -d 'Bytes that a tunnel on the way takes from the uplink\'s MTU' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l non-masquerade -d 'A destination for which pods keep their address, such as the range of all nodes\' pods; can be repeated' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -s o -l output -d 'Write to this file, whole or not at all, instead of printing' -r -F
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l cni-version -d 'The CNI version of the configuration. From 1.1.0 on runtimes poll the plugins with STATUS' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l cni-path -d 'Where plugins are, separated by colons: those that are there are asked whether they support the CNI version' -r
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l no-masquerade -d 'Do not masquerade'
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -l portmap -d 'Add the plugin portmap, for host ports'
complete -c gangplank -n "__fish_gangplank_using_subcommand conf" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand install" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand install" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand uninstall" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand uninstall" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand completions" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand completions" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand man" -l color -d 'When to colour what is printed; the variable NO_COLOR means never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c gangplank -n "__fish_gangplank_using_subcommand man" -s h -l help -d 'Print help'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "status" -d 'Show each network\'s bridge, addresses, masquerading and pods'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "doctor" -d 'Look for what is wrong with this node\'s pod networks: cause, evidence, remedy'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "reconcile" -d 'Put back what a firewall reload or a network manager removed from living pods'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "routes" -d 'Make this node\'s routes to the other nodes\' pod ranges match a list of nodes on stdin'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "conf" -d 'Print a CNI configuration for a subnet, or for a Kubernetes Node object on stdin'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "install" -d 'Put the plugins into a CNI bin directory; what was there is kept as NAME.orig'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "uninstall" -d 'Take the plugins out of a CNI bin directory and bring NAME.orig back'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "completions" -d 'Print completions for a shell'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "man" -d 'Print the manual page, in roff'
complete -c gangplank -n "__fish_gangplank_using_subcommand help; and not __fish_seen_subcommand_from status doctor reconcile routes conf install uninstall completions man help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
